"""What the tool `page` does not reach: addresses of this machine and its network, however they are written or led
to."""

import ipaddress
import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from page_calls import context, page, told

from arpo.errors import ProviderError, ToolError
from arpo.http.address import is_public, resolve
from arpo.tools.page import PageTool
from localhost import Reply, serving


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://127.1/",
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0177.0.0.1/",
        "http://0/",
        "http://0.0.0.0/",
        "http://localhost/",
        "http://localhost./",
        "http://LOCALHOST:8080/",
        "http://[::1]/",
        "http://[::]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:7f00:1]/",
        "http://[::127.0.0.1]/",
        "http://[64:ff9b::7f00:1]/",
        "http://[2002:7f00:1::]/",
        "http://[fe80::1]/",
        "http://[fc00::1]/",
        "http://[ff02::1]/",
        "http://10.0.0.1/",
        "http://172.16.0.1/",
        "http://192.168.1.1/",
        "http://100.64.0.1/",
        "http://169.254.169.254/latest/meta-data/",
        "http://224.0.0.1/",
        "http://255.255.255.255/",
        "http://user:pw@127.0.0.1/",
        "http://example.org@127.0.0.1/",
        "https://127.0.0.1/",
        "127.0.0.1",
        "localhost:8080/admin",
    ],
)
async def test_private_addresses_are_refused_however_they_are_written(url: str) -> None:
    with pytest.raises(
        ToolError, match=r"not on the public internet|not a URL: Invalid IPv4|there is no host 'localhost\.'"
    ) as caught:
        await PageTool()({"url": url}, context())
    assert not isinstance(caught.value, ProviderError)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://example.org/",
        "gopher://127.0.0.1:70/",
        "javascript:alert(1)",
        "data:text/html,hello",
        "http://",
        "http:///etc",
        "http://[::1",
        "http://a\x00b/",
        "https://①②⑦.⓪.⓪.①/",
        "unix:///var/run/docker.sock",
    ],
)
async def test_what_is_no_web_page_is_refused(url: str) -> None:
    with pytest.raises(ToolError) as caught:
        await PageTool()({"url": url}, context())
    assert not isinstance(caught.value, ProviderError)


def names(monkeypatch: pytest.MonkeyPatch, found: dict[str, list[str]]) -> list[str]:
    """Lets names have these addresses, as a hostile name server would; returns what was looked up."""
    real, asked = socket.getaddrinfo, []

    def look_up(host: Any, port: Any, *more: Any, **others: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if name not in found:
            return real(host, port, *more, **others)
        asked.append(name)
        addresses = found[name]
        address = addresses.pop(0) if len(addresses) > 1 and addresses[0].startswith("!") else addresses[-1]
        kind = socket.AF_INET6 if ":" in address else socket.AF_INET
        return [(kind, socket.SOCK_STREAM, 6, "", (address.lstrip("!"), port))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return asked


# the last four are global to some versions of Python: a cloud's metadata, Azure's, the same mapped, and site-local
INSIDE = [
    *("127.0.0.1", "10.1.2.3", "169.254.169.254", "::1", "::ffff:10.0.0.1", "fe80::1", "fd00::1"),
    *("192.0.0.192", "168.63.129.16", "::ffff:168.63.129.16", "fec0::1"),
]


@pytest.mark.parametrize("address", INSIDE)
async def test_a_name_that_leads_inside_is_refused(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    names(monkeypatch, {"evil.example": [address]})
    with pytest.raises(ToolError, match=r"evil\.example is not on the public internet"):
        await PageTool()({"url": "http://evil.example/"}, context())


async def test_a_name_is_looked_up_once_and_that_address_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rebinding: the first look-up gives an allowed address, every later one another."""
    with serving(lambda _: Reply("the right one", kind="text/plain")) as site:
        asked = names(monkeypatch, {"rebind.example": ["!127.0.0.1", "10.9.9.9"]})
        text = await told(page(allow_private=["127.0.0.1"]), f"http://rebind.example:{site.port}/x")
    assert "the right one" in text and asked == ["rebind.example"]
    assert site.asked[0].headers["host"] == f"rebind.example:{site.port}"


@pytest.mark.parametrize(
    "target",
    ["http://127.0.0.2:{port}/", "http://10.0.0.1/", "http://[::1]/", "file:///etc/passwd", "//169.254.169.254/x"],
)
async def test_a_redirect_inside_is_refused(target: str) -> None:
    with serving(lambda _: Reply(status=302, headers={"Location": target.format(port=site.port)})) as site:
        with pytest.raises(ToolError, match=r"not on the public internet|only http"):
            await told(page(allow_private=["127.0.0.1"]), site.url)
        assert len(site.asked) == 1


@pytest.mark.parametrize(
    "target", ["data:text/html,hi", "data:,x", "javascript:alert(1)", "mailto:a@b", "http://[::1", "http://a:b"]
)
async def test_a_redirect_to_what_is_no_page_is_a_plain_error(target: str) -> None:
    with serving(lambda _: Reply(status=302, headers={"Location": target})) as site:
        with pytest.raises(ToolError, match=r"only http|what is no URL|breaks off"):
            await told(page(allow_private=["127.0.0.1"]), site.url)
        assert len(site.asked) == 1


async def test_a_redirect_of_robots_txt_inside_is_refused() -> None:
    with serving(lambda _: Reply(status=302, headers={"Location": f"http://127.0.0.2:{site.port}/"})) as site:
        with pytest.raises(ToolError, match="not on the public internet"):
            await told(page(allow_private=["127.0.0.1"], robots=True), site.url)
        assert len(site.asked) == 1


async def test_a_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with serving(lambda _: Reply("direct", kind="text/plain")) as site:
        assert "direct" in await told(page(), site.url)


@given(st.ip_addresses(v=4))
def test_an_address_is_as_private_inside_ipv6_as_alone(address: ipaddress.IPv4Address) -> None:
    wrapped = [
        ipaddress.IPv6Address(f"::ffff:{address}"),
        ipaddress.IPv6Address((0x2002 << 112) | (int(address) << 80)),
        ipaddress.IPv6Address((0x64FF9B << 96) | int(address)),
    ]
    if not is_public(address):
        assert not any(map(is_public, wrapped))


async def test_names_that_do_not_exist_and_names_of_the_net() -> None:
    assert await resolve("8.8.8.8", 80) == ["8.8.8.8"]
    for host in ("", "a" * 300 + ".example", "-.example", "no host"):
        with pytest.raises((ToolError, ProviderError)):
            await resolve(host, 80)
