"""Pipelines that take pictures and are not run, with the reason."""

_SAME_CALL = (
    "no tiny one is built here; it calls its transformer as the text pipeline of its family"
)
_FRAMES = "no tiny video encoder is built here; the transformer is called as from text"
_TOKENS = "its source picture is tokens or conditions of a model that no tiny one is built of here"


def _each(names: str, reason: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), reason)


NOT_RUN: dict[str, str] = {
    "ChromaInpaintPipeline": "diffusers asks the model for guidance_embeds, which it does not have",
    **_each(
        """CogView4ControlPipeline HunyuanDiTControlNetPipeline HunyuanDiTPAGPipeline
        Flux2KleinInpaintPipeline Flux2KleinKVPipeline Flux2KleinPipeline Flux2Pipeline
        BriaFibo2Pipeline BriaFiboEditPipeline HunyuanImageRefinerPipeline Kandinsky5I2IPipeline
        LongCatImageEditPipeline QwenImage21Pipeline QwenImageLayeredPipeline
        SanaSprintImg2ImgPipeline VisualClozeGenerationPipeline VisualClozePipeline""",
        _SAME_CALL,
    ),
    **_each(
        """AnyFlowFARPipeline AnyFlowPipeline ChronoEditPipeline CogVideoXFunControlPipeline
        CogVideoXImageToVideoPipeline CogVideoXVideoToVideoPipeline Cosmos2VideoToWorldPipeline
        Cosmos2_5_PredictBasePipeline Cosmos2_5_TransferPipeline Cosmos3OmniPipeline
        CosmosVideoToWorldPipeline EasyAnimateControlPipeline EasyAnimateInpaintPipeline
        HeliosPipeline HeliosPyramidPipeline HunyuanSkyreelsImageToVideoPipeline
        HunyuanVideo15ImageToVideoPipeline HunyuanVideoFramepackPipeline
        HunyuanVideoImageToVideoPipeline Kandinsky5I2VPipeline Kandinsky6SRPipeline
        Kandinsky6TI2VAPipeline LTX2ConditionPipeline LTX2DFRPipeline
        LTX2DFRTemporalRefinePipeline LTX2ImageToVideoPipeline LTX2InContextPipeline
        LTXConditionPipeline LTXImageToVideoPipeline LucyEditPipeline
        MotifVideoImage2VideoPipeline SanaImageToVideoPipeline SanaWMPipeline
        SkyReelsV2DiffusionForcingImageToVideoPipeline
        SkyReelsV2DiffusionForcingVideoToVideoPipeline SkyReelsV2ImageToVideoPipeline
        WanAnimatePipeline WanImageToVideoPipeline WanVACEPipeline WanVideoToVideoPipeline""",
        _FRAMES,
    ),
    **_each(
        """GlmImagePipeline JoyImageEditPipeline JoyImageEditPlusPipeline OmniGenPipeline
        ZImageOmniPipeline""",
        _TOKENS,
    ),
}
