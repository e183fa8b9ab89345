"""Configuration of one accelerator: a frozen dataclass, everything else is derived from it."""

import hashlib
import json
from dataclasses import asdict, dataclass, fields, replace

from .errors import SigbitError
from .formats import ESB, ESBU, INT, UINT, Format, FormatError, product_bits
from .instructions import CODEBOOK_LEVELS, LEVEL, LEVEL_CODES, PARAMETER
from .layout import BitTable
from .masks import GROUPS, TOKEN_LANES
from .parts import RAW_BITS, activation_parts, code_distances, indexed_parts, part_shift_bits

__all__ = [
    "CELLS",
    "CONTRACT_VERSION",
    "PRESETS",
    "AcceleratorConfig",
    "ConfigError",
    "accumulator_width",
    "ram_luts",
    "subset_word_bits",
]

#: Version of everything in :mod:`sigbit_hw.spec`; travels in every packet, register file and manifest.
CONTRACT_VERSION = 4
#: Kinds of cells a grid is built of.
CELLS = ("logic", "table", "subset", "masked")
#: How results are scaled.
REQUANTIZERS = ("multiplier", "shift")
#: Whether the stream may carry weights as packed indices into a few codes.
PACKING_OPTIONS = ("none", "radix")
#: Longest codes of the table cell.
TABLE_CODE_BITS = (LEVEL_CODES - 1).bit_length()
#: Weights that share a table of the subset-sum cell, and the largest magnitude of one.
SUBSET_WEIGHTS = 4
SUBSET_WEIGHT_BITS = 8
#: Look-up tables of the ZU9EG (AMD DS891), and those of them that can be memory.
DEVICE_LUTS = 274_080
MEMORY_LUTS = 144_000
#: Most columns of a grid.
COLUMNS_MAX = 1024
#: Pairs of bits and look-up tables of a RAM32M16 and of a RAM32M.
_RAM_PAIRS, _RAM_LUTS = 7, 8
_SMALL_RAM_PAIRS, _SMALL_RAM_LUTS = 3, 4


class ConfigError(SigbitError):
    """A configuration that cannot be built."""


def accumulator_width(products, magnitude_max):
    """Bits of a signed sum of ``products`` terms with XOR negation, each at most ``magnitude_max`` (numerics 5.1)."""
    return 1 + (products * (magnitude_max + 1) - 1).bit_length()


def ram_luts(pairs):
    """Look-up tables of UltraScale+ that are memory: 32 words of so many pairs of bits, each with its own port."""
    large, rest = divmod(pairs, _RAM_PAIRS)
    return large * _RAM_LUTS + (rest > 0) * (_SMALL_RAM_LUTS if rest <= _SMALL_RAM_PAIRS else _RAM_LUTS)


def subset_word_bits(largest_weight):
    """Bits of a signed sum of weights that share a table of the subset-sum cell."""
    return 1 + (SUBSET_WEIGHTS * largest_weight).bit_length()


def _power_of_two(value):
    return value > 0 and value & (value - 1) == 0


@dataclass(frozen=True, kw_only=True)
class AcceleratorConfig:
    """Everything that fixes the hardware. Two equal configurations give the same Verilog.

    Parameters
    ----------
    weight_format, activation_format : :class:`Format`
        Native operands of the array. Weights are signed. Wider operands run as several passes (:mod:`.parts`).
    rows : int
        Cells chained in one column.
    lanes : int
        Multipliers in a cell; ``rows * lanes`` activations enter per cycle and plane.
    columns : int
        Output channels computed at once.
    weight_columns : int
        Columns that one word of weight memory holds and that load in one cycle: 1, 2, 4, 8 or 16; divides
        ``post_lanes``.
    planes : int
        Output pixels computed at once with the same weights.
    post_lanes : int
        Outputs requantized per cycle; divides ``columns`` and ``rows * lanes``.
    strip_depth : int
        Output pixels per plane held in one bank of accumulators; a power of two.
    max_reduction : int
        Longest reduction at native formats for which accumulators are sized.
    max_wide_reduction : int
        Longest reduction of 8-bit weights and 8-bit activations for which accumulators are sized.
    feature_depth, weight_depth, parameter_depth : int
        Words of the three memories; powers of two.
    cell : str
        ``"logic"``: multipliers of look-up tables. ``"table"``: products of the stationary weights in distributed RAM,
        for codes of up to 4 bits, whose levels every layer brings along. ``"subset"``: sums of four stationary weights
        in distributed RAM, for uniform activations and weights with magnitudes of up to 8 bits. ``"masked"``: the
        most important nibbles of every ``lanes`` (4, 8 or 16) activations of 8 bits (:mod:`.masks`), chosen at run
        time, against weights of up to 8.
    logic_columns : int
        So many columns, the last ones, are of logic cells in a grid whose others are table or subset-sum cells: they
        need no distributed RAM. With them tables hold the native levels only.
    fill_columns : int
        Columns whose tables one generator fills, one after the other: 1, 2, 4, 8 or 16, not less than
        ``weight_columns``. Less logic and more cycles per tile; of no effect without tables.
    table_weight_bits, table_product_bits : int
        What tables take: weights of magnitudes up to ``2**table_weight_bits``, 1 to 8, and products of a weight with an
        activation's distance from the smallest one below ``2**table_product_bits``, up to 16. Of no effect without
        tables.
    level_depth : int
        Words of the memory for level tables, 16 per table; a power of two. Of no effect without tables.
    token_lanes : int
        Nibbles that a masked cell multiplies per cycle: 1, 2 or 4; of no effect on other cells.
    requantizer : str
        ``"multiplier"``: any scale. ``"shift"``: powers of two only, less logic (numerics 6.2).
    threshold_count : int
        Comparisons per result: activations may have codebooks of one level more, up to 16. 0: none.
    packing : str
        ``"radix"``: weights that have up to 8 different codes in a layer may come packed, 5 of 3 codes in a byte.
        ``"none"``: only as they are.
    instruction_depth : int
        Instructions that the queue holds; a power of two.
    stream_bits : int
        TDATA width of both AXI4-Streams: 64, 128, 256 or 512.

    Raises
    ------
    :exc:`ConfigError`
        If a value is out of range, naming it and what was expected.
    """

    weight_format: Format
    activation_format: Format
    rows: int
    lanes: int
    columns: int
    weight_columns: int = 1
    planes: int = 1
    post_lanes: int
    strip_depth: int
    max_reduction: int = 4608
    max_wide_reduction: int = 512
    feature_depth: int
    weight_depth: int
    parameter_depth: int
    cell: str = "logic"
    logic_columns: int = 0
    fill_columns: int = 8
    table_weight_bits: int = 5
    table_product_bits: int = 8
    level_depth: int = 512
    token_lanes: int = 1
    requantizer: str = "multiplier"
    threshold_count: int = 0
    packing: str = "none"
    instruction_depth: int = 16
    stream_bits: int = 128

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in ("weight_format", "activation_format"):
                if not isinstance(value, Format):
                    raise ConfigError(f"{field.name} must be a Format, not {value!r}")
                if value.indexed:
                    raise ConfigError(
                        f"{field.name} must be an int, uint, esb or esbu format, not {value.label}: codebooks "
                        f"travel in programs, which run on every array"
                    )
            elif field.name == "cell":
                if value not in CELLS:
                    raise ConfigError(f"cell must be {', '.join(CELLS[:-1])} or {CELLS[-1]}, not {value!r}")
            elif field.name == "requantizer":
                if value not in REQUANTIZERS:
                    raise ConfigError(f"requantizer must be {' or '.join(REQUANTIZERS)}, not {value!r}")
            elif field.name == "threshold_count":
                if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < CODEBOOK_LEVELS:
                    raise ConfigError(f"threshold_count must be 0 to {CODEBOOK_LEVELS - 1}, not {value!r}")
            elif field.name == "packing":
                if value not in PACKING_OPTIONS:
                    raise ConfigError(f"packing must be {' or '.join(PACKING_OPTIONS)}, not {value!r}")
            elif field.name == "logic_columns":
                if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                    raise ConfigError(f"logic_columns must be an integer of 0 or more, not {value!r}")
            elif not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{field.name} must be a positive integer, not {value!r}")
        if not self.weight_format.signed:
            raise ConfigError(f"weight_format must be signed (int, esb, ausn-a or ausn-g), not {self.weight_format}")
        if self.stream_bits not in (64, 128, 256, 512):
            raise ConfigError(f"stream_bits must be 64, 128, 256 or 512, not {self.stream_bits}")
        for name, low, high in (
            ("strip_depth", 8, 4096),
            ("feature_depth", 16, 1 << 20),
            ("weight_depth", 16, 1 << 20),
            ("parameter_depth", 2, 1 << 16),
            ("level_depth", 2 * LEVEL_CODES, 1 << 16),
            ("instruction_depth", 4, 256),
        ):
            value = getattr(self, name)
            if not _power_of_two(value) or not low <= value <= high:
                raise ConfigError(f"{name} must be a power of two from {low} to {high}, not {value}")
        for name, high in (
            ("rows", 64),
            ("lanes", 256),
            ("columns", COLUMNS_MAX),
            ("planes", 8),
            ("table_weight_bits", 8),
            ("table_product_bits", 16),
        ):
            if getattr(self, name) > high:
                raise ConfigError(f"{name} must be at most {high}, not {getattr(self, name)}")
        if not _power_of_two(self.planes):
            raise ConfigError(f"planes must be a power of two, not {self.planes}")
        if self.columns % self.post_lanes or self.vector % self.post_lanes:
            raise ConfigError(
                f"post_lanes must divide columns ({self.columns}) and rows * lanes ({self.vector}), "
                f"not {self.post_lanes}"
            )
        if self.weight_columns not in (1, 2, 4, 8, 16) or self.post_lanes % self.weight_columns:
            raise ConfigError(
                f"weight_columns must be 1, 2, 4, 8 or 16 and divide post_lanes ({self.post_lanes}), "
                f"not {self.weight_columns}"
            )
        if self.fill_columns not in (1, 2, 4, 8, 16):
            raise ConfigError(f"fill_columns must be 1, 2, 4, 8 or 16, not {self.fill_columns}")
        self._check_logic_columns()
        if self.cell in ("table", "subset"):
            self._check_tables()
        if self.cell == "masked":
            self._check_masked()
        if self.accumulator_bits > RAW_BITS:
            raise ConfigError(
                f"accumulators would need {self.accumulator_bits} bits, the requantizer takes {RAW_BITS}; "
                f"lower max_reduction ({self.max_reduction}) or max_wide_reduction ({self.max_wide_reduction})"
            )

    def _check_logic_columns(self):
        if not self.logic_columns:
            return
        if self.cell not in ("table", "subset"):
            raise ConfigError(
                f"logic_columns are for grids of table or subset cells, not {self.cell}; leave logic_columns out"
            )
        if self.logic_columns >= self.columns:
            raise ConfigError(
                f"logic_columns must be less than columns ({self.columns}), not {self.logic_columns}; with cell logic "
                f"all columns are of logic cells"
            )
        if self.cell == "table" and self.activation_format.signed:
            raise ConfigError(
                f"Logic cells beside table cells take unsigned activations, not {self.activation_format}, of which "
                f"tables count from the smallest level; choose uint or esbu, or logic_columns 0"
            )

    def _check_tables(self):
        if self.cell == "subset":
            self._check_subsets()
        else:
            self._check_levels()
        if self.fill_columns < self.weight_columns:
            raise ConfigError(
                f"fill_columns must be at least weight_columns ({self.weight_columns}), not {self.fill_columns}"
            )
        if self.memory_luts > MEMORY_LUTS:
            raise ConfigError(
                f"Tables would need {self.memory_luts} look-up tables as memory, {self.memory_luts - MEMORY_LUTS} more "
                f"than the {MEMORY_LUTS} of the ZU9EG; raise logic_columns, lower columns, lanes, rows or planes, or "
                f"choose cell logic"
            )

    def _check_subsets(self):
        if not self.activation_format.uniform or self.weight_format.magnitude_bits > SUBSET_WEIGHT_BITS:
            raise ConfigError(
                f"Subset-sum cells take int and uint activations and weights with magnitudes of up to "
                f"{SUBSET_WEIGHT_BITS} bits; {self.weight_format} has {self.weight_format.magnitude_bits}, activations "
                f"are {self.activation_format}; choose other formats or cell logic"
            )

    def _check_levels(self):
        for name in ("weight_format", "activation_format"):
            if (form := getattr(self, name)).bits > TABLE_CODE_BITS:
                raise ConfigError(
                    f"Table cells take codes of up to {TABLE_CODE_BITS} bits, but {name} {form} has {form.bits}; "
                    f"choose a shorter format or cell logic"
                )
        largest = self.weight_format.magnitude_max
        product = largest * max(code_distances(self.activation_format))
        if largest > self.table_weight_max or product > self.product_magnitude_max:
            raise ConfigError(
                f"Tables must hold {self.weight_format} x {self.activation_format}, with weights up to {largest} and "
                f"products up to {product}; raise table_weight_bits ({self.table_weight_bits}) to "
                f"{(largest - 1).bit_length()} and table_product_bits ({self.table_product_bits}) to "
                f"{product.bit_length()}, choose shorter formats or cell logic"
            )

    def _check_masked(self):
        if self.activation_format != UINT(8) or self.weight_format.kind != "int" or self.weight_format.bits > 8:
            raise ConfigError(
                f"Masked cells take weights of int:2 to int:8 and activations of uint:8, not {self.weight_format} x "
                f"{self.activation_format}"
            )
        if self.lanes not in GROUPS:
            raise ConfigError(f"lanes of masked cells are the group of a mask: {GROUPS}, not {self.lanes}")
        if self.token_lanes not in TOKEN_LANES:
            raise ConfigError(f"token_lanes must be 1, 2 or 4, not {self.token_lanes}")
        if self.post_lanes % (self.weight_columns * self.lanes):
            raise ConfigError(
                f"post_lanes of masked cells must be a multiple of weight_columns * lanes "
                f"({self.weight_columns * self.lanes}), not {self.post_lanes}"
            )

    @property
    def masked(self):
        """Whether activations are masked, which takes several cycles per vector, and weights are negated exactly."""
        return self.cell == "masked"

    @property
    def level_tables(self):
        """Whether layers bring along what codes mean: with table cells, unless logic cells beside them have native
        levels."""
        return self.cell == "table" and not self.logic_columns

    @property
    def vector(self):
        """Activations that enter the array per cycle and plane; channels in one feature word."""
        return self.rows * self.lanes

    @property
    def mac_lanes(self):
        """Multipliers in the grid: part products per cycle."""
        inputs = self.rows * self.token_lanes if self.masked else self.vector
        return inputs * self.columns * self.planes

    @property
    def part_shift_bits(self):
        """Left shift of the accumulators between part passes, and bits of a digit. With tables any code can be one."""
        if self.level_tables:
            return self.activation_format.bits
        return part_shift_bits(self.activation_format)

    def activation_parts(self, stored):
        """How a tensor in the format ``stored`` is stored: :class:`~.parts.ActivationParts`.

        Raises
        ------
        :exc:`~.formats.FormatError`
            If the array cannot multiply such levels.
        """
        if self.level_tables:
            return indexed_parts(self.activation_format.bits, stored)
        return activation_parts(self.activation_format, stored)

    @property
    def product_magnitude_max(self):
        """Largest magnitude of a product of two native operands, or that a table takes."""
        if self.cell == "table":
            return (1 << self.table_product_bits) - 1
        return self.weight_format.magnitude_max * self.activation_format.magnitude_max

    @property
    def product_bits(self):
        """Bits of a product without the weight's sign; signed for signed activations of the logic cell."""
        if self.cell == "table":
            return self.table_product_bits
        return product_bits(self.weight_format, self.activation_format)

    @property
    def table_weight_max(self):
        """Largest magnitude of a weight's level that tables take."""
        return 1 << self.table_weight_bits

    @property
    def memory_luts(self):
        """Look-up tables of UltraScale+ that the grid's tables take as memory, with the weights of their generators and
        the levels of weight codes."""
        if self.cell == "logic":
            return 0
        if self.masked:
            return self.mac_lanes * _RAM_LUTS
        columns = self.columns - self.logic_columns
        if self.cell == "subset":
            word_bits = subset_word_bits(self.weight_format.magnitude_max)
            words = -(-self.lanes // SUBSET_WEIGHTS) * self.activation_format.bits
            weight_bits, decoders = self.lanes * (self.weight_format.magnitude_bits + 1), 0
        else:
            word_bits, words = self.product_bits, self.lanes
            weight_bits = self.lanes * (self.table_weight_bits + 2)
            decoders = self.weight_columns * ram_luts(self.vector * -(-(self.table_weight_bits + 2) // 2))
        tables = columns * self.planes * self.rows * ram_luts(words * -(-word_bits // 2))
        generators = -(-columns // self.fill_columns) * self.rows
        return tables + generators * self.weight_columns * ram_luts(-(-weight_bits // 2)) + decoders

    @property
    def sum_bits(self):
        """Signed width of the sum that leaves a column of ``rows`` cells."""
        return accumulator_width(self.vector, self.product_magnitude_max)

    @property
    def accumulator_bits(self):
        """Signed width of an accumulator: the larger worst case of the two reduction limits."""
        return max(
            self.sum_bits,
            accumulator_width(self.max_reduction, self.product_magnitude_max),
            accumulator_width(self.max_wide_reduction, INT(8).magnitude_max * UINT(8).magnitude_max),
        )

    @property
    def feature_word_bits(self):
        """One feature memory word: ``vector`` native activation codes, channel 0 in the low bits."""
        return self.vector * self.activation_format.bits

    @property
    def weight_word_bits(self):
        """One weight memory word: ``vector`` weight codes of each of ``weight_columns`` columns, the first lowest."""
        return self.weight_columns * self.vector * self.weight_format.bits

    @property
    def level_word_bits(self):
        """One word of the memory for level tables: an entry of :data:`~.instructions.LEVEL`."""
        return LEVEL.width

    @property
    def parameter_word_bits(self):
        """One parameter memory word: ``post_lanes`` entries of :attr:`parameter`."""
        return self.post_lanes * self.parameter.width

    @property
    def parameter(self):
        """One entry of parameter memory: :data:`~.instructions.PARAMETER`, and thresholds if there are any.

        A threshold has one bit more than an accumulator, so that some are always and some never reached.
        """
        if not self.threshold_count:
            return PARAMETER
        bits = self.accumulator_bits + 1
        own = [(field.name, field.bits, field.signed) for field in PARAMETER.fields]
        own += [(f"threshold{j}", bits, True) for j in range(self.threshold_count)]
        return BitTable("PARAMETER", sum(width for _, width, _ in own), *own)

    def beats_per_word(self, word_bits):
        """Stream beats that carry one memory word; every word starts on a beat."""
        return -(-word_bits // self.stream_bits)

    def to_dict(self):
        """Plain values, formats as text; the inverse of :meth:`from_dict`."""
        return {key: str(getattr(self, key)) if "format" in key else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values):
        """Build from :meth:`to_dict`'s form.

        Raises
        ------
        :exc:`ConfigError`
            If keys are unknown or missing, or a value cannot be built.
        """
        if not isinstance(values, dict):
            raise ConfigError(f"A configuration is a JSON object, not {type(values).__name__}")
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ConfigError(
                f"Unknown configuration keys {', '.join(unknown)}; expected some of {', '.join(sorted(known))}"
            )
        values = dict(values)
        try:
            for key in ("weight_format", "activation_format"):
                if key in values:
                    values[key] = Format.parse(str(values[key]))
            return cls(**values)
        except FormatError as error:
            raise ConfigError(str(error)) from error
        except TypeError as error:
            raise ConfigError(f"Configuration is incomplete: {error}") from error

    @property
    def hash(self):
        """64-bit identity of this configuration and contract version, as registers and packets carry it."""
        text = json.dumps({"contract": CONTRACT_VERSION, **self.to_dict()}, sort_keys=True)
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


_TINY = AcceleratorConfig(
    weight_format=ESB(4, 2),
    activation_format=ESBU(4, 2),
    rows=2,
    lanes=4,
    columns=8,
    post_lanes=4,
    strip_depth=32,
    feature_depth=2048,
    weight_depth=2048,
    parameter_depth=64,
    stream_bits=64,
)

_SMALL = replace(
    _TINY,
    rows=1,
    lanes=32,
    columns=16,
    post_lanes=4,
    strip_depth=256,
    feature_depth=8192,
    weight_depth=4096,
    parameter_depth=256,
    stream_bits=128,
)

#: Named configurations: ``tiny`` for tests, ``small`` for whole small networks, ``tables`` for those of any mixture of
#: formats of up to 4 bits, ``sdp`` under term masks, ``ulx3s`` and ``zcu102`` for boards.
PRESETS = {
    "tiny": _TINY,
    "small": _SMALL,
    "tables": replace(_SMALL, cell="table", table_weight_bits=7, table_product_bits=12, weight_columns=2),
    "sdp": replace(
        _TINY,
        weight_format=INT(8),
        activation_format=UINT(8),
        cell="masked",
        token_lanes=2,
        rows=4,
        lanes=8,
        columns=16,
        weight_columns=2,
        post_lanes=16,
        strip_depth=256,
        feature_depth=8192,
        weight_depth=8192,
        parameter_depth=256,
        stream_bits=128,
    ),
    "ulx3s": replace(
        _TINY,
        rows=1,
        lanes=16,
        columns=8,
        post_lanes=4,
        strip_depth=256,
        feature_depth=8192,
        weight_depth=4096,
        parameter_depth=256,
    ),
    "zcu102": replace(
        _TINY,
        rows=1,
        lanes=64,
        columns=64,
        weight_columns=2,
        planes=2,
        post_lanes=32,
        strip_depth=512,
        max_wide_reduction=4096,
        feature_depth=32768,
        weight_depth=4096,
        parameter_depth=512,
        instruction_depth=64,
        stream_bits=512,
    ),
}
