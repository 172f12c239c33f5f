"""Our own wording of each question. Each asks for exactly the format that its reader reads.

The checkpoints were trained with their authors' texts and are more accurate with them: name those with `--template`.
"""

THINK_PAIRWISE = """\
Compare two pictures that were made from one caption, and say which is better. The first picture you see is Image 1, \
the second is Image 2.

Caption: <<PROMPT>>

Judge three aspects: Semantic consistency (is everything the caption asks for there, and right?), Aesthetics \
(composition, colour, style) and Authenticity (does it look real, without broken details?). Add one or two aspects of \
your own where this caption calls for them. For each aspect, give both pictures whole points from 1 to 10 and a short \
reason. Then add up the points of each picture. The picture with more points is better; on equal points, decide by \
the caption.

Reply in this form and write nothing else:
<think>
1. Semantic consistency:
    Image 1 (points/10) - reason;
    Image 2 (points/10) - reason
2. Aesthetics:
    ...
3. Authenticity:
    ...
Total score:
Image 1: points+points+points=sum
Image 2: points+points+points=sum
</think>
<answer>Image N is better</answer>
with 1 or 2 in the place of N.
"""

PAIR_RANK = """\
Here are two pictures made from one caption: first Image 1, then Image 2. Which of them shows what the caption says \
more faithfully and is the better picture (sharp, well coloured, without faults)?

Caption: <<PROMPT>>

Explain in a few sentences, then end with exactly one of these: "Image 1 is better.", "Image 2 is better." or "Both \
images are equally good."
"""

FLEX = """\
You are an expert in judging generated pictures. Compare Image 1 (shown first) with Image 2 (shown second), both made \
from this prompt:

<<PROMPT>>

Judge three categories: "A. Semantic alignment", "B. Image quality" and "C. Aesthetics". Add "D" with a name of your \
own if the prompt has a side that these do not cover. In each category pick three to five dimensions in which the two \
pictures differ most. Share out exactly 10 points between the pictures in each dimension, and give the visible \
evidence for each share. Then name the winner of each category and the winner overall.

Reply with one JSON object of this structure and nothing else:
{"prompt": "the prompt",
 "categories": [
   {"name": "A. Semantic alignment",
    "dims": [{"name": "...", "reason_1": "...", "reason_2": "...", "score_1": 6, "score_2": 4}],
    "cat_reason": "...",
    "cat_winner": "Image 1"}],
 "reason": "...",
 "winner": "Image 1"}
Each winner is either "Image 1" or "Image 2".
"""

EDIT_PAIR = """\
You see three pictures: a source picture, then Edited image 1, then Edited image 2. Both edits tried to follow this \
instruction:

<<PROMPT>>

Which edit is better? First, the instruction: is all of it done, is it done right, and is everything it does not \
mention left as it was in the source? Second, the picture: is it believable in light, shadow and perspective, free of \
seams, blur and broken shapes, and pleasant to look at?

Explain briefly. Then close with one line, which is either
Edited image 1 is better
or
Edited image 2 is better
"""

PAIR_SCORE = """\
Compare two pictures that were made from the same caption. The first one shown is Image 1, the second one is Image 2.

Caption: <<PROMPT>>

Split one point between them in three respects: Alignment (which shows the caption's content better), Coherence (which \
has fewer glitches and impossible shapes) and Style (which is more beautiful, whatever the caption says). The two \
shares of a respect are decimals from 0 to 1 and add up to 1.

Reply with nothing but this, with numbers in the place of X and Y:

Alignment Score:
 Image 1: X
 Image 2: Y

Coherence Score:
 Image 1: X
 Image 2: Y

Style Score:
 Image 1: X
 Image 2: Y
"""

POINTWISE = """\
Rate a generated picture against its caption.

Caption: <<PROMPT>>

Give a number from 1 (bad) to 5 (excellent), decimals allowed, for each of these:
Alignment: the picture shows what the caption says.
Coherence: shapes, bodies and objects make sense and there are no glitches.
Style: the picture is beautiful, whatever the caption says.

Reply with these three lines only:
Alignment Score (1-5): X
Coherence Score (1-5): Y
Style Score (1-5): Z
"""

EDIT_POINTWISE_INSTRUCTION = """\
The first picture is a source, the second is an edit of it that should follow this instruction:

<<PROMPT>>

Give two whole numbers from 0 to 25. The first says how well the instruction was carried out: 0 not at all, 25 \
perfectly. The second says how much was kept that the instruction does not mention: 0 for another picture altogether, \
25 for a change of only what had to change. The two pictures may be the same: then nothing was carried out.

Reply with one JSON object and nothing else: {"reasoning": "one or two sentences", "score": [first, second]}
"""

EDIT_POINTWISE_QUALITY = """\
Look at this generated picture and rate it by itself. Give two whole numbers from 0 to 25. The first says how natural \
it looks: 0 for wrong distances, shadows or light throughout, 25 for a picture that could be real. The second says how \
clean it is: 0 for distortions, blurred faces, extra limbs, watermarks or parts that do not belong together all over \
it, 25 for no fault at all.

Reply with one JSON object and nothing else: {"reasoning": "one or two sentences", "score": [first, second]}
"""
