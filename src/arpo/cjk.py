"""Chinese and Japanese characters, which stand without space between words."""

import re

HAN = "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""For a character class of a regular expression."""

IS_HAN = re.compile(f"[{HAN}]")
