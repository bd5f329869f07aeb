"""Words that deny, limit, hedge or change what stands beside them: an answer with one of them does not state its number
or its name. Closed classes of words, on purpose wide: a sentence that is refused may be said more simply.
"""

import re
from collections.abc import Iterable

from arpo.answer_text import vocabulary

# of tokens (arpo.answer_text:tokens): without apostrophes, accents and capitals
REFUSED = vocabulary(
    """not never no none nor neither non cannot cant isnt wasnt arent werent dont doesnt didnt couldnt wouldnt shouldnt
    hasnt havent hadnt wont aint without unless unlike hardly barely scarcely rarely seldom but except excepting
    excluding excludes apart besides instead rather regardless barring save wrong incorrect false untrue
    mistaken mistakenly falsely inaccurate impossible unlikely unable unknown unclear unsure uncertain doubt
    doubts doubtful doubted deny denies denied refuse refuses rejected rules ruled or either whether maybe
    perhaps possibly alternatively versus vs if otherwise guess suppose allegedly supposedly like then over
    under above below beyond exceeding exceeds exceed exceeded before after since until till past prior
    following least most more less fewer greater higher lower larger smaller than up almost nearly approaching
    maximum minimum max min between within outside near nearby surrounding formerly former ex successor
    predecessor half halves third thirds quarter quarters twice double doubled triple tripled square squared
    cube cubed squares root plus minus times-table dozen dozens score thrice halved sum difference product
    reciprocal inverse negative out factorial percentage nicht kein keine keinen nie niemals oder sondern außer
    ausser fast pas ne jamais sauf ou ni aucun sinon nunca jamas tampoco sino excepto salvo o nao ikke ikkje
    inte ej niet geen nooit mai nem ei yok degil khong bukan tidak не нет или кроме"""
)
REFUSED_HAN = re.compile(
    r"不|并非|没有|无法|除了|除外|以外|之外|或|还是|超过|多于|大于|小于|少于|低于|高于|至少|至多|最多"
    r"|以上|以下|以内|一半|近(?=\d)|将近|(?<!目)前(?=\s*\d)"
)
INSTEAD = re.compile(r"\b(?:not|isn['’]?t|wasn['’]?t)\b.*\bbut\b|不是.*而是|并非.*而是", re.IGNORECASE | re.DOTALL)
LIMIT_MARKS = re.compile(r"[<>≤≥≮≯≠±]|\d\s?\+(?!\s*\d)|\+/-|\d\s?[?？]")


def asserted(text: str) -> str:
    """What is left of `not Lima but Cusco`: ` Cusco`."""
    match = INSTEAD.search(text)
    return text if match is None else text[match.end() :]


def refuses(words: Iterable[str], text: str = "") -> bool:
    """True if the words beside an answer, or Chinese phrases and marks in `text`, deny, limit or change it."""
    return not REFUSED.isdisjoint(words) or bool(REFUSED_HAN.search(text)) or bool(LIMIT_MARKS.search(text))
