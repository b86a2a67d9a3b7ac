"""This machine's figures: our kernels beside torch's and beside what memory allows."""

from livella.bench.bench import Result as Result
from livella.bench.bench import bench as bench
from livella.bench.errors import BenchError as BenchError
from livella.bench.plan import plan as plan
from livella.bench.plot import write_page as write_page
from livella.bench.rows import Record as Record
from livella.bench.rows import read as read
from livella.bench.table import show as show
