"""Looking at a corpus: orderings, statistics, its stream as a page.

order    `triaxis data order`; scores has what a run's model thinks of documents
stats    `triaxis data stats`; pictures draws what it counted
shuffle  `triaxis data stats --shuffle`
show     `triaxis data show`; page writes the HTML
"""
