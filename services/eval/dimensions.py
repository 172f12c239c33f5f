"""UniGenBench's dimensions: 10 primary, 27 sub dimensions, in English and Chinese, with our own definitions.

Names and structure are those of UniGenBench++ (CodeGoat24/UniGenBench, CC BY 4.0). The definitions are our wording; the
published ones are loaded from a file the user names (`services.eval.prompting.load_definitions`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Language = Literal["en", "zh"]


@dataclass(frozen=True)
class Dimension:
    """A sub dimension. `name` and `zh` are the test-point names of the prompt files."""

    name: str
    zh: str
    definition: str
    definition_zh: str

    @property
    def primary(self) -> str:
        """`Attribute` of `Attribute - Color`; a dimension without parts is its own primary dimension."""
        return self.name.partition(" - ")[0]

    def named(self, language: Language) -> str:
        return self.name if language == "en" else self.zh

    def defined(self, language: Language) -> str:
        return self.definition if language == "en" else self.definition_zh


DIMENSIONS: tuple[Dimension, ...] = (
    Dimension(
        "Style",
        "风格",
        "The picture has the look that is asked for: an art movement, technique, medium, photographic look, design "
        "style, or the manner of a named artist.",
        "画面呈现所要求的样式：艺术流派、技法、媒介、摄影效果、设计风格或某位艺术家的手法。",
    ),
    Dimension(
        "World Knowledge",
        "世界知识",
        "Known persons, places, buildings, works, customs or facts that the prompt names are recognisable and right.",
        "提示词提到的人物、地点、建筑、作品、习俗或常识，在画面中能够辨认且正确。",
    ),
    Dimension("Attribute - Color", "属性-颜色", "Things have the colors that are asked for.", "物体的颜色与要求一致。"),
    Dimension(
        "Attribute - Expression",
        "属性-表情",
        "A face shows the emotion that is asked for.",
        "面部流露出所要求的情绪。",
    ),
    Dimension(
        "Attribute - Material",
        "属性-材质",
        "Things visibly consist of the material that is asked for.",
        "物体看上去由所要求的材料制成。",
    ),
    Dimension("Attribute - Quantity", "属性-数量", "The count of things is exact.", "物体的数目准确无误。"),
    Dimension("Attribute - Shape", "属性-形状", "Things have the shape that is asked for.", "物体具有所要求的外形。"),
    Dimension(
        "Attribute - Size",
        "属性-大小",
        "Size, height, length, width or thickness is as asked for.",
        "物体的尺寸、高度、长度、宽度或厚度符合要求。",
    ),
    Dimension("Action - Animal", "动作-动物动作", "An animal does what is asked for.", "动物正在做所要求的事情。"),
    Dimension(
        "Action - Contact Interaction",
        "动作-实体间有接触互动",
        "Two or more things act on each other and touch as asked for.",
        "两个或多个对象按要求发生互动，并且互相接触。",
    ),
    Dimension(
        "Action - Full-body (Character/Anthropomorphic)",
        "动作-人物/拟人全身动作",
        "A person or humanlike figure does what is asked for with the whole body, in a possible posture.",
        "人物或拟人角色用整个身体完成所要求的动作，姿态合理。",
    ),
    Dimension(
        "Action - Hand (Character/Anthropomorphic)",
        "动作-人物/拟人手部动作",
        "Hands do what is asked for and are well formed, no finger missing or merged.",
        "手部完成所要求的动作，且结构正常，手指没有缺少或粘连。",
    ),
    Dimension(
        "Action - Non-contact Interaction",
        "动作-实体间无接触互动",
        "Two or more things relate to each other as asked for without touching, as in looking at one another.",
        "两个或多个对象在不接触的情况下按要求互动，例如彼此注视。",
    ),
    Dimension(
        "Action - State",
        "动作-状态",
        "Something is in the lasting state that is asked for, such as lying, floating or burning.",
        "对象处于所要求的持续状态，例如躺着、漂浮或燃烧。",
    ),
    Dimension(
        "Relationship - Comparison",
        "关系-比较关系",
        "A property differs between things the way the prompt compares them.",
        "各对象的某项属性之间的差别与提示词的对比一致。",
    ),
    Dimension(
        "Relationship - Composition",
        "关系-构成关系",
        "A thing is made up of the other things that are named.",
        "一个对象由所提到的其他对象组成。",
    ),
    Dimension(
        "Relationship - Inclusion",
        "关系-包含关系",
        "A thing is inside another, or shown on it, as asked for.",
        "一个对象按要求处于另一个对象之内或出现在其表面。",
    ),
    Dimension(
        "Relationship - Similarity",
        "关系-相似关系",
        "Different things resemble each other in the respect that is named.",
        "不同的对象在所提到的方面彼此相像。",
    ),
    Dimension(
        "Logical Reasoning",
        "逻辑推理",
        "The picture shows what follows from the prompt, though the prompt only implies it.",
        "画面表现出由提示词推断得到、而没有直接写明的内容。",
    ),
    Dimension(
        "Grammar - Consistency",
        "语法-统一性",
        "A property that the prompt gives to several things at once is seen on each of them.",
        "提示词同时赋予多个对象的共同属性，在每个对象上都能看到。",
    ),
    Dimension("Grammar - Negation", "语法-否定", "What the prompt rules out is absent.", "提示词排除的内容没有出现。"),
    Dimension(
        "Grammar - Pronoun Reference",
        "语法-代词指代",
        "What is said of a pronoun is seen on the thing it stands for.",
        "代词所描述的内容落在它真正指代的对象上。",
    ),
    Dimension(
        "Compound - Feature Matching",
        "复合考点-不同实体特征匹配",
        "Each thing has its own features; none is swapped with another's.",
        "每个对象各有其特征，彼此没有混淆。",
    ),
    Dimension(
        "Compound - Imagination",
        "复合考点-想象力",
        "The impossible thing that is asked for is shown as one coherent thing.",
        "所要求的现实中不可能的事物被完整而连贯地表现出来。",
    ),
    Dimension(
        "Entity Layout - Three-Dimensional Space",
        "实体布局-三维空间",
        "Things stand to each other in depth as asked for: before, behind, near, far.",
        "对象在纵深上的位置符合要求：前、后、近、远。",
    ),
    Dimension(
        "Entity Layout - Two-Dimensional Space",
        "实体布局-二维空间",
        "Things lie in the picture's plane as asked for: left, right, above, below, in the middle.",
        "对象在画面平面上的位置符合要求：左、右、上、下、中间。",
    ),
    Dimension(
        "Text Generation",
        "文本生成",
        "The text that is asked for is written in the picture, complete and without a wrong letter.",
        "画面写出所要求的文字，完整且没有错字。",
    ),
)

# In the leaderboard's order of columns.
PRIMARIES: tuple[str, ...] = (
    "Style",
    "World Knowledge",
    "Attribute",
    "Action",
    "Relationship",
    "Logical Reasoning",
    "Grammar",
    "Compound",
    "Entity Layout",
    "Text Generation",
)


def _squeezed(name: str) -> str:
    return re.sub(r"\s*-\s*", "-", " ".join(name.split()))


_BY_NAME: dict[str, tuple[Dimension, Language]] = {
    **{_squeezed(dimension.name): (dimension, "en") for dimension in DIMENSIONS},
    **{dimension.zh: (dimension, "zh") for dimension in DIMENSIONS},
}


def find_dimension(name: str) -> tuple[Dimension, Language] | None:
    """The dimension of a test-point name and the name's language. White space around hyphens does not matter."""
    return _BY_NAME.get(_squeezed(name))
