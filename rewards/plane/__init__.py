"""`rewards services`: the reward services of a recipe, a compose file or of addresses, asked how they are.

`sources` says whom to ask, `ask` asks one of them, `exposition` reads its metrics, `watch` makes a row of what two looks
say, `table` prints the rows and `site` serves them as a page. What is not known has a dash and a reason, never a zero.
"""
