from .compositional import compositional_score as compositional_score
from .judge_network import JudgeNetwork as JudgeNetwork
from .judge_network import encode_captions as encode_captions
from .judge_network import load_judge as load_judge
from .paths import PIPELINE_PATH as PIPELINE_PATH
from .render import IMAGE_SIZE as IMAGE_SIZE
from .render import draw_captions as draw_captions
from .scenes import sample_prompts as sample_prompts
