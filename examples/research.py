"""Two tools for a research assistant: papers of arXiv and of PubMed. See docs/example-research.md."""

from collections.abc import Sequence
from xml.etree import ElementTree

import httpx

import arpo

HOSTS = ("https://export.arxiv.org", "https://eutils.ncbi.nlm.nih.gov")
ATOM = {"": "http://www.w3.org/2005/Atom"}
ARXIV = ("id", "title", "author/name", "published", "summary")
DATE = "Article/Journal/JournalIssue/PubDate"
PUBMED = ("PMID", "Article/ArticleTitle", "Article/AuthorList/Author/LastName", DATE, "Article/Abstract/AbstractText")


class Library:
    """`arxiv`, `ncbi`: where the services are; `email`: whom NCBI may write to, as it asks its users to say."""

    def __init__(
        self, arxiv: str = "https://export.arxiv.org", ncbi: str = "https://eutils.ncbi.nlm.nih.gov", email: str = ""
    ) -> None:
        self._arxiv, self._ncbi = f"{arxiv}/api/query", f"{ncbi}/entrez/eutils"
        self._asks = {"db": "pubmed", "tool": "arpo", **({"email": email} if email else {})}
        self._http = httpx.AsyncClient(timeout=20, follow_redirects=True)

    async def _get(self, url: str, **query: str | int) -> httpx.Response:
        try:
            answer = await self._http.get(url, params=query)
        except httpx.TransportError as error:
            raise arpo.ProviderError(f"no answer: {type(error).__name__}") from error
        if answer.status_code == 429 or answer.status_code >= 500:  # another attempt may succeed
            raise arpo.ProviderError(f"status {answer.status_code}")
        if answer.status_code >= 400:
            raise arpo.ToolError(f"the query is refused: {answer.text[:200]}")
        return answer

    @arpo.tool(cacheable=True, provider="arxiv")
    async def arxiv(self, query: str) -> str:
        """Finds papers of physics, mathematics and computer science on arXiv: titles, authors, summaries."""
        feed = await self._get(self._arxiv, search_query=f"all:{query}", max_results=5)
        entries = ElementTree.fromstring(feed.content).findall("entry", ATOM)
        return "\n".join(paper(entry, ARXIV, ATOM) for entry in entries) or "nothing"

    @arpo.tool(cacheable=True, provider="ncbi")
    async def pubmed(self, query: str) -> str:
        """Finds papers of medicine and biology in PubMed: titles, authors, abstracts."""
        search = await self._get(f"{self._ncbi}/esearch.fcgi", term=query, retmax=5, retmode="json", **self._asks)
        if not (ids := search.json()["esearchresult"]["idlist"]):
            return "nothing"
        articles = await self._get(f"{self._ncbi}/efetch.fcgi", id=",".join(ids), retmode="xml", **self._asks)
        return "\n".join(paper(a, PUBMED) for a in ElementTree.fromstring(articles.content).iter("MedlineCitation"))


def paper(record: ElementTree.Element, paths: Sequence[str], spaces: dict[str, str] | None = None) -> str:
    """`[id] title (authors, date). summary`, on one line."""
    found = [[" ".join("".join(part.itertext()).split()) for part in record.findall(path, spaces)] for path in paths]
    name, title, authors, date, summary = (", ".join(texts[:6]) for texts in found)
    return f"[{name}] {title} ({authors}, {date[:10]}). {summary}"
