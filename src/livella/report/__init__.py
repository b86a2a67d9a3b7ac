"""What a study found, for people: on the terminal, as a page, and as JSON."""

from livella.report.files import write as write
