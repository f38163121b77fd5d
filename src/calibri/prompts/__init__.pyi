from .buckets import Buckets as Buckets
from .files import Prompt as Prompt
from .files import make_prompts as make_prompts
from .pictures import load_picture as load_picture
from .sets import is_prompt_set as is_prompt_set
from .sources import PromptSets as PromptSets
from .sources import prompt_sets as prompt_sets
from .sources import prompts_from as prompts_from
