"""What stands in the photos, and what is asked: made by rules, the same each time."""

from collections.abc import Iterator
from dataclasses import dataclass

PLACES_ZH = ("梧桐路", "解放街", "和平里", "南京东路", "中山公园", "人民广场", "火车站", "大学城", "滨江道", "鼓楼巷")
KINDS_ZH = (
    "理发店", "面包房", "药房", "书店", "咖啡馆", "洗衣店", "修车铺", "幼儿园",
    "银行", "图书馆", "水果店", "电影院", "邮局", "饺子馆", "眼镜店",
)  # fmt: skip
PLACES_EN = (
    "Maple Street", "Harbour", "Kingston", "Old Mill", "Riverside",
    "Queen Anne", "Station Road", "Hillcrest", "Greenwood", "Market",
)  # fmt: skip
KINDS_EN = (
    "Bakery", "Pharmacy", "Bookshop", "Laundry", "Garage", "Kindergarten", "Savings Bank", "Library",
    "Cinema", "Post Office", "Optician", "Barber", "Hotel", "Florist", "Museum",
)  # fmt: skip
SINGLE = {
    "福": "新年福到", "寿": "寿比南山", "喜": "双喜临门", "茶": "茶", "酒": "陈年老酒",
    "鱼": "年年有鱼", "龙": "龙腾四海", "梦": "梦想", "雪": "瑞雪", "鸡": "烧鸡",
    "竹": "竹报平安", "凤": "凤", "春": "迎春", "拆": "拆", "鼎": "鼎盛",
    "牛": "牛奶", "静": "静", "忍": "百忍", "舞": "舞蹈", "鹤": "松鹤延年",
}  # fmt: skip
FILLERS_ZH = ("营业时间 9:00-21:00", "欢迎光临", "全场八折", "小心地滑")
FILLERS_EN = ("Open daily 9 to 21", "Welcome", "20% off today", "Mind the step")

SUBJECTS = (
    ("a dog running on the beach", "在沙滩上奔跑的狗"), ("a red car parked in the street", "停在街边的红色汽车"),
    ("sunset over the mountains", "山上的日落"), ("a birthday cake with candles", "插着蜡烛的生日蛋糕"),
    ("children playing football", "踢足球的孩子们"), ("a cat sleeping on a sofa", "在沙发上睡觉的猫"),
    ("a bowl of noodle soup", "一碗汤面"), ("snow on pine trees", "松树上的积雪"),
    ("a sailing boat on the lake", "湖面上的帆船"), ("a bridge at night", "夜晚的大桥"),
    ("people dancing at a wedding", "婚礼上跳舞的人"), ("a close-up of a flower", "一朵花的特写"),
    ("a steam train in the valley", "山谷里的蒸汽火车"), ("a baby in the bath", "洗澡的婴儿"),
    ("an aeroplane in the sky", "天空中的飞机"), ("a crowded fish market", "拥挤的鱼市场"),
    ("a waterfall in the forest", "森林里的瀑布"), ("horses in a meadow", "草地上的马"),
    ("a city skyline in the fog", "雾中的城市天际线"), ("a man reading in a library", "在图书馆看书的人"),
)  # fmt: skip
PICTURES_EACH = 20

# Words of the picture queries that stand in photos of something else: the ranking puts these first, as asked for.
CONFLICTS = ("beach", "car", "flower", "bridge", "train", "飞机", "瀑布", "大桥")


@dataclass(frozen=True)
class Photo:
    """A photo to be drawn: its text, the words that are asked for, and its subject (-1: a thing with text)."""

    name: str
    lines: tuple[str, ...] = ()
    query: str = ""
    subject: int = -1


def photos() -> list[Photo]:
    """Return 320 photos with text that is asked for, 40 with words of picture queries, 400 pictures without text."""
    return [*_texts(), *_singles(), *_conflicts(), *_pictures()]


def _texts() -> Iterator[Photo]:
    for i, place in enumerate(PLACES_ZH):
        for j, kind in enumerate(KINDS_ZH):
            fillers = (FILLERS_ZH[(i + j) % 4], f"电话 {60000000 + 7919 * (15 * i + j)}")
            lines = (place, kind) if j % 2 else (place + kind,)
            yield Photo(f"zh-{i}-{j}", (*lines, *fillers[: j % 3]), " ".join(lines))
    for i, place in enumerate(PLACES_EN):
        for j, kind in enumerate(KINDS_EN):
            fillers = (FILLERS_EN[(i + j) % 4], f"Tel. {60000000 + 7919 * (15 * i + j)}")
            lines = (place, kind) if j % 2 else (f"{place} {kind}",)
            query = f"{place} {kind}"
            yield Photo(f"en-{i}-{j}", (*lines, *fillers[: j % 3]), query.lower() if j % 4 < 2 else query)


def _singles() -> Iterator[Photo]:
    for i, (character, line) in enumerate(SINGLE.items()):
        yield Photo(f"one-{i}", (line,), character)


def _conflicts() -> Iterator[Photo]:
    for i, word in enumerate(CONFLICTS):
        for j in range(5):
            line = f"{word}俱乐部 {j + 1}" if ord(word[0]) > 255 else f"{word} club {j + 1}"
            yield Photo(f"conflict-{i}-{j}", (line,))


def _pictures() -> Iterator[Photo]:
    for subject in range(len(SUBJECTS)):
        for j in range(PICTURES_EACH):
            yield Photo(f"picture-{subject}-{j}", subject=subject)
