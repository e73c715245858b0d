"""The atoms of a PDB or mmCIF file that a map shows: one conformation, no waters, every atom whole."""

import functools
import gzip
import itertools
import re
import string
import warnings
import zlib
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cryofm_io.errors import InputFileError, MapWarning

if TYPE_CHECKING:
    import gemmi

__all__ = ["read_model"]

# Names of waters that gemmi does not know: those of programs for molecular dynamics.
_WATERS = frozenset({"TIP", "TIP2", "TIP3", "TIP4", "TP3", "T3P", "SOL", "SPC", "W"})
_MOST_BYTES = 2**31  # of an unpacked file
_HEAVIEST = 98  # electron form factors go up to Cf
_HEAVIEST_GUESS = 16  # sulphur, of what a first letter may stand for
_LARGEST_B = 1e4  # Å²
_ROUNDING = 0.01  # of the matrices of an assembly
_ASSEMBLIES, _COPIES, _MOVES = "_pdbx_struct_assembly.", "_pdbx_struct_assembly_gen.", "_pdbx_struct_oper_list."
_SAID, _EXPRESSION = ("details", "method_details", "oligomeric_details", "oligomeric_count"), "oper_expression"
_TRANSFORM = [*(f"matrix[{i}][{j}]" for i in "123" for j in "123"), *(f"vector[{i}]" for i in "123")]


def read_model(path: Path, max_atoms: int) -> "gemmi.Model":
    """Read the atoms that count, with one conformation, occupancy 1, an element and a B factor each.

    Args:
        path: PDB or mmCIF, compressed too.
        max_atoms: a first assembly larger than this is left for the file's own model.

    Raises:
        InputFileError: no atomic model, or one without atoms.

    Warns:
        MapWarning: atoms that lack an element (guessed from their names), a position (left out) or a B factor (the
            median is taken).
    """
    try:
        structure = _read(path)
        if len(structure):
            for model in structure:
                for chain in model:
                    _keep_one_conformation(chain)
            _find_elements(path, structure)
            structure.remove_hydrogens()
            structure.remove_waters()
            _remove_other_waters(structure)
            _drop_without_position(path, structure)
            structure.remove_empty_chains()
        with_atoms = next((model for model in structure if model.count_atom_sites()), None)
        if with_atoms is None:
            raise InputFileError(f"{path} holds no atoms but waters and hydrogens, if any")
        model = _assembly(structure, with_atoms, max_atoms)
        _settle_b_factors(path, model)
    except InputFileError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError, OSError, EOFError, MemoryError, zlib.error) as error:
        said = " ".join(str(error).split())
        raise InputFileError(f"{path} is no readable atomic model ({said}); give PDB or mmCIF") from None
    return model


def _read(path: Path) -> "gemmi.Structure":
    """By its content, since endings are spelt in many ways."""
    import gemmi

    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        with gzip.open(path) as stream:
            content = stream.read(min(_MOST_BYTES, 1032 * len(content)))
    # What is no UTF-8 can only stand in names and remarks.
    text = content.decode("utf-8-sig", "replace").replace("\r\n", "\n").replace("\r", "\n")
    is_cif = "_atom_site." in text.lower() or text.lstrip()[:5].lower() == "data_"
    # `read_structure_string` would do, but is newer than the oldest version that is declared.
    structure = gemmi.make_structure_from_block(_block(text)) if is_cif else gemmi.read_pdb_string(text)
    structure.setup_entities()
    return structure


def _block(text: str) -> "gemmi.cif.Block":
    """The block of the atoms, with the columns that gemmi asks for and that others leave out."""
    import gemmi

    blocks = gemmi.cif.read_string(text)
    block = next((block for block in blocks if block.find_values("_atom_site.Cartn_x")), blocks[0])
    loop = block.find_values("_atom_site.Cartn_x").get_loop()
    for name in ("_atom_site.id", "_atom_site.type_symbol", "_atom_site.label_alt_id", "_atom_site.label_asym_id"):
        if loop is not None and not block.find_values(name):
            loop.add_columns([name], "?")
    _shorten_letters(block)
    _spell_out_assemblies(block)
    return block


def _shorten_letters(block: "gemmi.cif.Block") -> None:
    """Names of conformations that are longer than a letter, which mmCIF allows, get one that is not taken."""
    letters = block.find_values("_atom_site.label_alt_id")
    long = dict.fromkeys(name for name in letters if len(name) > 1 and name[0] not in "'\"")
    free = iter(sorted(set(string.ascii_letters + string.digits) - {*letters}))
    short = {name: next(free, "?") for name in long}
    for i, name in enumerate(letters if short else ()):
        letters[i] = short.get(name, name)


def _spell_out_assemblies(block: "gemmi.cif.Block") -> None:
    """Write which copies make an assembly as gemmi takes it: with all its columns, and without products of copies."""
    made = [[row.str(i) for i in range(3)] for row in block.find(_COPIES, ["assembly_id", _EXPRESSION, "asym_id_list"])]
    moves = {row.str(0): [row.str(i) for i in range(1, 13)] for row in block.find(_MOVES, ["id", *_TRANSFORM])}
    try:
        for copies in made:
            names = []
            for factors in itertools.product(*_factors(copies[1])):
                names.append("*".join(factors))
                if len(factors) > 1:
                    product = functools.reduce(np.matmul, (_matrix(moves[factor]) for factor in factors))
                    moves[names[-1]] = [f"{x:.9f}" for x in (*product[:3, :3].ravel(), *product[:3, 3])]
            copies[1] = ",".join(names)
    except (KeyError, ValueError):
        return  # a transform that is not there: the model itself is taken
    if made and moves:
        assemblies = [[name, "?", "?", "?", "?"] for name in dict.fromkeys(row[0] for row in made)]
        _write_table(block, _ASSEMBLIES, ["id", *_SAID], assemblies)
        _write_table(block, _COPIES, ["assembly_id", _EXPRESSION, "asym_id_list"], made)
        _write_table(block, _MOVES, ["id", "type", *_TRANSFORM], [[name, "?", *row] for name, row in moves.items()])


def _factors(expression: str) -> list[list[str]]:
    """Of ``(X0,P)(1-3)``: X0, P and 1, 2, 3."""
    found = []
    for part in re.findall(r"[^()]+", "".join(expression.split())):
        names: list[str] = []
        for name in part.split(","):
            ends = re.fullmatch(r"(\d{1,4})-(\d{1,4})", name)
            names += [name] if ends is None else map(str, range(int(ends[1]), int(ends[2]) + 1))
        found.append(names)
    return found


def _matrix(row: list[str]) -> NDArray[np.float64]:
    values = np.array([float(x) for x in row])
    return np.block([[values[:9].reshape(3, 3), values[9:, None]], [np.zeros((1, 3)), np.ones((1, 1))]])


def _write_table(block: "gemmi.cif.Block", prefix: str, columns: list[str], rows: list[list[str]]) -> None:
    import gemmi

    block.find_mmcif_category(prefix).erase()
    loop = block.init_loop(prefix, columns)
    for row in rows:
        loop.add_row([gemmi.cif.quote(value) if value != "?" else value for value in row])


def _keep_one_conformation(chain: "gemmi.Chain") -> None:
    """Of atoms in several places, and of several residues in one, keep what is there most of the time."""
    places = defaultdict(list)
    for i, residue in enumerate(chain):
        places[residue.seqid.num, residue.seqid.icode, residue.segment].append(i)
    gone = []
    for indices in places.values():
        residues = [chain[i] for i in indices]
        weight: dict[str, float] = defaultdict(float)
        for residue in residues:
            for atom in residue:
                if atom.altloc != "\0":
                    weight[atom.altloc] += max(atom.occ, 0.0)
        if weight:
            chosen = max(sorted(weight), key=lambda letter: weight[letter])
            if len({residue.name for residue in residues}) > 1:
                gone += [i for i in indices if not _has_place(chain[i], chosen)]
            for residue in residues:
                _keep_letter(residue, chosen, weight)
        for residue in residues:
            for atom in residue:
                atom.occ, atom.altloc = 1.0, "\0"
    for i in sorted(gone, reverse=True):
        del chain[i]


def _has_place(residue: "gemmi.Residue", chosen: str) -> bool:
    """Whether a residue beside others of its number belongs to the chosen conformation, or to all of them."""
    letters = {atom.altloc for atom in residue}
    return chosen in letters or letters == {"\0"}


def _keep_letter(residue: "gemmi.Residue", chosen: str, weight: dict[str, float]) -> None:
    """Each name once: in the chosen conformation, or in the next one that has it."""
    best: dict[str, str] = {}
    order = {"\0": 0.0, chosen: 1.0} | {
        x: 2.0 - w / (1 + sum(weight.values())) for x, w in weight.items() if x != chosen
    }
    for atom in residue:
        if atom.name not in best or order[atom.altloc] < order[best[atom.name]]:
            best[atom.name] = atom.altloc
    for i in reversed(range(len(residue))):
        if residue[i].altloc != best[residue[i].name]:
            del residue[i]


def _find_elements(path: Path, structure: "gemmi.Structure") -> None:
    """Guess the elements that are not given, which gemmi would take for something that scatters little."""
    import gemmi

    guessed = 0
    for model in structure:
        for chain in model:
            for residue in chain:
                for atom in residue:
                    if 0 < atom.element.atomic_number <= _HEAVIEST and atom.name != "UNK":
                        continue  # gemmi takes unknown ones for uranium
                    guessed += 1
                    letters = "".join(c for c in atom.name if c.isascii() and c.isalpha())
                    alone = len(residue) == 1 and letters.upper() == residue.name.upper()  # an ion
                    element = gemmi.Element(letters if alone else letters[:1])
                    known = 0 < element.atomic_number <= (_HEAVIEST if alone else _HEAVIEST_GUESS)
                    atom.element = element if known else gemmi.Element("C")
    if guessed:
        _warn(f"{path}: {guessed} atoms have no element that scatters electrons by table; guessed from their names")


def _remove_other_waters(structure: "gemmi.Structure") -> None:
    for model in structure:
        for chain in model:
            for i in reversed(range(len(chain))):
                if chain[i].name.upper() in _WATERS:
                    del chain[i]


def _drop_without_position(path: Path, structure: "gemmi.Structure") -> None:
    dropped = 0
    for model in structure:
        for chain in model:
            for residue in chain:
                for i in reversed(range(len(residue))):
                    if not np.isfinite(residue[i].pos.tolist()).all():
                        del residue[i]
                        dropped += 1
    if dropped:
        _warn(f"{path}: {dropped} atoms have no position and are left out")


def _assembly(structure: "gemmi.Structure", model: "gemmi.Model", max_atoms: int) -> "gemmi.Model":
    """The first biological assembly, or the model itself where the file does not say how to make one."""
    import gemmi

    if not structure.assemblies:
        return model
    known: defaultdict[str, list[NDArray[np.float64]]] = defaultdict(list)
    present = {residue.subchain for chain in model for residue in chain}
    for generator in structure.assemblies[0].generators:  # which name the chains of the waters too
        generator.subchains = [name for name in generator.subchains if name in present]
        if not all(_is_motion(operator.transform) for operator in generator.operators):
            return model
        _drop_repeated(generator, known)
    try:
        assembly = gemmi.make_assembly(structure.assemblies[0], model, gemmi.HowToNameCopiedChain.Short)
    except (RuntimeError, ValueError, IndexError):
        return model
    return assembly if 0 < assembly.count_atom_sites() <= max_atoms else model


def _drop_repeated(generator: "gemmi.Assembly.Gen", known: defaultdict[str, list[NDArray[np.float64]]]) -> None:
    """Copies in a place where there is one already would count twice."""
    names, operators = [*generator.subchains, *generator.chains], generator.operators
    for i in reversed(range(len(operators))):
        transform = operators[i].transform
        place = np.append(np.array(transform.mat.tolist()).ravel(), transform.vec.tolist())
        if all(any(np.abs(place - other).max() < _ROUNDING for other in known[name]) for name in names):
            del operators[i]
        for name in names:
            known[name].append(place)


def _is_motion(transform: "gemmi.Transform") -> bool:
    """Whether it turns and moves, and does neither stretch nor mirror."""
    matrix = np.array(transform.mat.tolist())
    turns = np.abs(matrix @ matrix.T - np.eye(3)).max() < _ROUNDING and np.linalg.det(matrix) > 0
    return bool(turns and np.isfinite(transform.vec.tolist()).all())


def _settle_b_factors(path: Path, model: "gemmi.Model") -> None:
    atoms = [site.atom for site in model.all()]
    b = np.array([atom.b_iso for atom in atoms])
    wrong = ~(np.abs(b) <= _LARGEST_B)
    if wrong.any():
        median = float(np.median(b[~wrong])) if not wrong.all() else 0.0
        for i in np.flatnonzero(wrong):
            atoms[i].b_iso = median
        _warn(f"{path}: {int(wrong.sum())} atoms have no B factor that can be; {median:.0f} Å² is taken")


def _warn(message: str) -> None:
    warnings.warn(message, MapWarning, stacklevel=5)
