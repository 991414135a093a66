"""Where in a tensor the places of the input are: axes that were split, merged, permuted, cut into windows, rolled or glued.

A `View` describes one tensor. Each of its dimensions is a product of *atoms*, from outer to inner (a dimension of windows times
positions has two). For every axis of the input, *terms* say which units an element reads: unit number = sum of index * weight over
atoms. So a reshape or a permute costs nothing and loses nothing, and attention inside windows is simply a sum over some atoms.

What belongs here: moving and joining of such descriptions. What does not: what an operation does (`sightline.fields.propagate`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from math import prod

from sightline.fields.units import IDENTITY, Units

Shape = Sequence[int]


@dataclass(eq=False, frozen=True)
class Atom:
    """A factor of a dimension; `opaque`: places are lost inside it. Size 1 only where an axis of the input stands for it."""

    size: int
    opaque: bool = False


Dim = tuple[Atom, ...]


@dataclass(frozen=True, eq=False)
class Term:
    """Units that an element reads along one axis: by all paths (`largest`) and by the shortest one."""

    largest: Units
    shortest: Units
    weights: Mapping[Atom, int]

    def mapped(self, change: Callable[[Units], Units], weights: Mapping[Atom, int]) -> Term:
        """The term with both kinds of units changed alike."""
        largest = change(self.largest)
        return Term(largest, largest if self.shortest is self.largest else change(self.shortest), weights)


@dataclass(frozen=True, eq=False)
class AxisView:
    """What the elements of a tensor read along one axis of the input.

    Attributes:
        terms: units read; none if the tensor does not depend on this axis, or reads all of it on every path.
        everything: some path reads the whole axis.
        loose: the terms hold for some element, but which one is not known.
        unknown: reason, if nothing can be said.
        notes: what a reader of the report should know.
    """

    terms: tuple[Term, ...] = ()
    everything: bool = False
    loose: bool = False
    unknown: str = ""
    notes: frozenset[str] = frozenset()

    @property
    def constant(self) -> bool:
        """Whether nothing of this axis is read at all."""
        return not (self.terms or self.everything or self.unknown)


@dataclass(frozen=True, eq=False)
class View:
    """Description of one tensor: its dimensions in atoms, and what is read along each axis of the input."""

    dims: tuple[Dim, ...]
    axes: tuple[AxisView, ...] = field(default=())

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the tensor."""
        return tuple(prod(atom.size for atom in dim) for dim in self.dims)

    @property
    def constant(self) -> bool:
        """Whether the tensor does not depend on the input."""
        return all(axis.constant for axis in self.axes)


def fresh(size: int) -> Dim:
    """A dimension that no axis of the input stands for."""
    return (Atom(size),) if size != 1 else ()


def blank(shape: Shape, axes: int) -> View:
    """A tensor that does not depend on the input."""
    return View(tuple(fresh(size) for size in shape), (AxisView(),) * axes)


def source(shape: Shape) -> View:
    """The input itself: (n, c, *axes)."""
    places = tuple(Atom(size) for size in shape[2:])
    terms = tuple(AxisView((Term(IDENTITY, IDENTITY, {atom: 1}),)) for atom in places)
    return View((*(fresh(size) for size in shape[:2]), *((atom,) for atom in places)), terms)


def unknown(shape: Shape, axes: int, reason: str) -> View:
    """A tensor about which nothing can be said."""
    return View(tuple(fresh(size) for size in shape), (AxisView(unknown=reason),) * axes)


def everywhere(view: View, shape: Shape) -> View:
    """A tensor of which every element reads all of another."""
    axes = (axis if axis.unknown or axis.constant else AxisView(everything=True, notes=axis.notes) for axis in view.axes)
    return View(tuple(fresh(size) for size in shape), tuple(axes))


def _with_terms(axis: AxisView, terms: Iterable[Term]) -> AxisView:
    return replace(axis, terms=tuple(terms))


# -- regrouping -------------------------------------------------------------------------------------------------------------------


def permuted(view: View, order: Sequence[int]) -> View:
    """``tensor.permute(order)``."""
    return View(tuple(view.dims[position] for position in order), view.axes)


def _split(view: View, changes: Mapping[Atom, Sequence[Atom]]) -> View:
    """Replace atoms by several, outer to inner, whose sizes multiply to theirs."""
    if not changes:
        return view
    axes = []
    for axis in view.axes:
        terms = []
        for term in axis.terms:
            weights = dict(term.weights)
            for old, parts in changes.items():
                weight = weights.pop(old, 0)
                for part in reversed(parts):
                    if weight:
                        weights[part] = weight
                    weight *= part.size
            terms.append(Term(term.largest, term.shortest, weights))
        axes.append(_with_terms(axis, terms))
    dims = tuple(tuple(part for atom in dim for part in changes.get(atom, (atom,))) for dim in view.dims)
    return View(dims, tuple(axes))


def _lost(view: View, shape: Shape) -> View:
    """The view with its places forgotten: every element still reads no more than some element did.

    Dimensions that hold no place, in front of what changes and behind it, still hold none.
    """
    old, new = view.shape, tuple(shape)
    ahead = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    behind = next((i for i, (a, b) in enumerate(zip(old[::-1], new[::-1], strict=False)) if a != b), min(len(old), len(new)))
    same = {i: i for i in range(ahead)} | {len(new) - 1 - i: len(old) - 1 - i for i in range(behind)}
    kept = {i for i, j in same.items() if not any(atom.opaque or _touched(view, atom) for atom in view.dims[j])}
    axes = tuple(
        replace(axis, loose=True, terms=tuple(Term(t.largest, t.shortest, {}) for t in axis.terms)) if axis.terms else axis
        for axis in view.axes
    )
    return View(tuple((Atom(n, opaque=True),) if i not in kept and n != 1 else fresh(n) for i, n in enumerate(shape)), axes)


def _all_lost(views: Sequence[View], shape: Shape) -> View:
    """An element-wise operation, or a concatenation, of tensors that do not fit together place by place."""
    lost = [_lost(view, shape) for view in views]
    dims = [
        next((dim for dim in parts if any(atom.opaque for atom in dim)), parts[0]) for parts in zip(*(v.dims for v in lost), strict=True)
    ]
    return _joined_axes(lost, tuple(dims))


def reshaped(view: View, shape: Shape) -> View:
    """``tensor.reshape(shape)``; places are lost where a dimension is cut across its atoms."""
    pending = deque(atom for dim in view.dims for atom in dim)
    changes: dict[Atom, list[Atom]] = {}
    root: dict[Atom, Atom] = {}
    dims: list[list[Atom]] = []
    for position, target in enumerate(shape):
        dim: list[Atom] = []
        have = 1
        while have < target:
            if not pending or target % have:
                return _lost(view, shape)
            atom, need = pending.popleft(), target // have
            if need % atom.size == 0:
                dim.append(atom)
                have *= atom.size
            elif atom.size % need == 0:
                outer, inner = Atom(need, atom.opaque), Atom(atom.size // need, atom.opaque)
                original = root.get(atom, atom)
                parts = changes.setdefault(original, [original])
                at = parts.index(atom) if atom in parts else 0
                parts[at : at + 1] = [outer, inner]
                root[outer] = root[inner] = original
                dim.append(outer)
                pending.appendleft(inner)
                have = target
            else:
                return _lost(view, shape)
        ones = 0
        while position + 1 + ones < len(shape) and shape[position + 1 + ones] == 1:
            ones += 1
        if target == 1 and pending and pending[0].size == 1:
            dim.append(pending.popleft())
        leading = next((i for i, atom in enumerate(pending) if atom.size != 1), len(pending))
        dim.extend(pending.popleft() for _ in range(leading - ones))
        dims.append(dim)
    if pending:
        if any(atom.size != 1 for atom in pending) or not dims:
            return _lost(view, shape)
        dims[-1].extend(pending)
    return View(tuple(map(tuple, dims)), _split(view, changes).axes)


def merged(view: View) -> View:
    """Join neighbouring atoms of an axis to one, and its terms to one, wherever they stand side by side in one dimension."""
    for number, axis in enumerate(view.axes):
        used = [atom for dim in view.dims for atom in dim if any(atom in term.weights for term in axis.terms)]
        if not used or axis.loose:
            continue
        if len(used) == 1 and len(axis.terms) == 1 and axis.terms[0].weights.get(used[0]) == 1:
            continue
        others = [term for other in view.axes if other is not axis for term in other.terms]
        place = next(index for index, dim in enumerate(view.dims) if used[0] in dim)
        dim = view.dims[place]
        start = dim.index(used[0])
        run = dim[start : start + len(used)]
        if list(run) != used or any(atom in term.weights for atom in run for term in others):
            continue
        whole = run[0] if len(run) == 1 else Atom(prod(atom.size for atom in run))
        terms = _unified([reindexed(term, run, whole) for term in axis.terms], whole.size)
        dims = (*view.dims[:place], (*dim[:start], whole, *dim[start + len(run) :]), *view.dims[place + 1 :])
        axes = (*view.axes[:number], _with_terms(axis, terms), *view.axes[number + 1 :])
        view = View(dims, axes)
    return view


def reindexed(term: Term, run: Sequence[Atom], whole: Atom) -> Term:
    """Number the units of a term by the joint index of several atoms, all that it has."""
    weights = [term.weights.get(atom, 0) for atom in run]
    if any(atom not in run for atom in term.weights) or (len(run) == 1 and weights[0] == 1):
        return term if len(run) != 1 else Term(term.largest, term.shortest, {whole: 1})
    inner = [sum(digit * weight for digit, weight in zip(digits, weights[1:], strict=True)) for digits in _digits(run[1:])]
    if weights[0] > 0:
        return term.mapped(lambda units: units.through([(unit,) for unit in inner], weights[0], whole.size), {whole: 1})
    index = [(outer * weights[0] + unit,) for outer in range(run[0].size) for unit in inner]
    return term.mapped(lambda units: units.gather(index), {whole: 1})


def _digits(atoms: Sequence[Atom]) -> Iterable[tuple[int, ...]]:
    return product(*(range(atom.size) for atom in atoms))


def _reach(weights: Mapping[Atom, int]) -> int:
    """Number of units that an index map can reach, from 0."""
    return 1 + sum((atom.size - 1) * max(weight, 0) for atom, weight in weights.items())


def _unified(terms: Sequence[Term], n: int | None = None) -> list[Term]:
    """Terms with the same index map become one."""
    result: list[Term] = []
    for term in terms:
        for position, other in enumerate(result):
            if other.weights == term.weights:
                count = _reach(term.weights) if n is None else n
                shortest = min(other.shortest, term.shortest, key=lambda units: units.size)
                largest = other.largest.union(term.largest, count)
                result[position] = Term(largest, shortest, term.weights)
                break
        else:
            result.append(term)
    return result


# -- mixing, cutting --------------------------------------------------------------------------------------------------------------


def mixed(view: View, dims: Sequence[int]) -> View:
    """Every element reads all elements that differ from it along these dimensions only (softmax, layer norm, before a sum)."""
    atoms = {atom for position in dims for atom in view.dims[position]}
    if not any(atom.opaque or any(atom in t.weights for axis in view.axes for t in axis.terms) for atom in atoms):
        return view
    axes = []
    for axis in view.axes:
        lost = axis.loose and any(atom.opaque for atom in atoms)
        everything, terms = axis.everything or lost, []
        for term in () if lost else axis.terms:
            gone = [atom for atom in term.weights if atom in atoms]
            kept = {atom: weight for atom, weight in term.weights.items() if atom not in atoms}
            if not gone:
                terms.append(term)
            elif not kept:
                everything = True
            else:
                taps = sorted({sum(d * term.weights[a] for d, a in zip(digits, gone, strict=True)) for digits in _digits(gone)})
                terms.append(term.mapped(lambda units, taps=taps, kept=kept: units.through([taps], 1, _reach(kept)), kept))  # type: ignore[misc]
        axes.append(replace(axis, everything=everything, terms=tuple(_unified(terms))))
    return View(view.dims, tuple(axes))


def _without(view: View, dims: Sequence[int]) -> View:
    """Make these dimensions of unknown meaning; for dimensions that were mixed before."""
    return View(
        tuple(fresh(size) if i in dims else dim for i, (dim, size) in enumerate(zip(view.dims, view.shape, strict=True))), view.axes
    )


def reduced(view: View, dims: Sequence[int], *, keepdim: bool) -> View:
    """``tensor.sum(dims, keepdim)``."""
    view = mixed(view, dims)
    kept = tuple(() if i in dims else dim for i, dim in enumerate(view.dims) if keepdim or i not in dims)
    return View(kept, view.axes)


def contracted(view: View, dim: int, size: int) -> View:
    """A matrix product along one dimension, which then has another size."""
    view = mixed(view, [dim])
    return View((*view.dims[:dim], fresh(size), *view.dims[dim + 1 :]), view.axes)


def expanded(view: View, shape: Shape) -> View:
    """``tensor.expand(shape)``."""
    missing = len(shape) - len(view.dims)
    dims = [(), *([()] * (missing - 1)), *view.dims] if missing else list(view.dims)
    kept = []
    for dim, old, new in zip(dims, (1,) * missing + view.shape, shape, strict=True):
        kept.append(dim if old == new else fresh(new))
    lost = {atom for dim, new in zip(dims, kept, strict=True) if dim is not new for atom in dim}
    return View(tuple(kept), tuple(_dropped(axis, lost) for axis in view.axes))


def _dropped(axis: AxisView, atoms: set[Atom]) -> AxisView:
    """Forget atoms of size 1, which add nothing to a unit number."""
    if not atoms or not any(atom in term.weights for term in axis.terms for atom in atoms):
        return axis
    return _with_terms(axis, (Term(t.largest, t.shortest, {a: w for a, w in t.weights.items() if a not in atoms}) for t in axis.terms))


def _touched(view: View, atom: Atom) -> bool:
    return any(atom in term.weights for axis in view.axes for term in axis.terms)


def sliced(view: View, dim: int, start: int, stop: int, step: int) -> View:
    """``tensor[start:stop:step]`` along one dimension, bounds inside it."""
    count = max(0, -(-(stop - start) // step))
    atoms = view.dims[dim]
    total = prod(atom.size for atom in atoms)
    if count == total or not atoms:
        return view
    if any(atom.opaque for atom in atoms):
        return View((*view.dims[:dim], (Atom(count, opaque=True),) if count != 1 else (), *view.dims[dim + 1 :]), view.axes)
    inner = total // atoms[0].size
    if len(atoms) == 1 or (step == 1 and start % inner == 0 and count % inner == 0):
        part = Atom(count // inner)
        head = (part,) if part.size != 1 or _touched(view, atoms[0]) else ()
        return _moved(view, {atoms[0]: (start // inner, step, part)}, dim, (*head, *atoms[1:]))
    if count == 1:
        fixed: dict[Atom, tuple[int, int, Atom | None]] = {}
        rest = start
        for atom in reversed(atoms):
            rest, digit = divmod(rest, atom.size)
            fixed[atom] = (digit, 0, None)
        return _moved(view, fixed, dim, ())
    whole = _as_one(view, dim)
    if whole is not None:
        return sliced(whole, dim, start, stop, step)
    return _lost(view, (*view.shape[:dim], count, *view.shape[dim + 1 :]))


def solid(view: View) -> View:
    """Make dimensions one atom each where they stand for one axis alone, so that units are numbered along them."""
    for dim, atoms in enumerate(view.dims):
        if len(atoms) > 1 and sum(any(atom in t.weights for t in axis.terms for atom in atoms) for axis in view.axes) == 1:
            view = _as_one(view, dim) or view
    return view


def _as_one(view: View, dim: int) -> View | None:
    """A dimension as one atom, units numbered along it; None where places of an axis stand elsewhere too."""
    atoms = set(view.dims[dim])
    if any(atom.opaque for atom in atoms):
        return None
    here = [[not atoms.isdisjoint(term.weights) for term in axis.terms] for axis in view.axes]
    pairs = [(term, yes) for axis, row in zip(view.axes, here, strict=True) for term, yes in zip(axis.terms, row, strict=True)]
    if any(yes and not atoms.issuperset(term.weights) for term, yes in pairs):
        return None
    whole = Atom(view.shape[dim])
    axes = []
    for axis, row in zip(view.axes, here, strict=True):
        terms = [reindexed(t, view.dims[dim], whole) if yes else t for t, yes in zip(axis.terms, row, strict=True)]
        axes.append(_with_terms(axis, _unified(terms)))
    return View((*view.dims[:dim], (whole,), *view.dims[dim + 1 :]), tuple(axes))


def _moved(view: View, changes: Mapping[Atom, tuple[int, int, Atom | None]], dim: int, atoms: Dim) -> View:
    """Let index i of an atom become offset + step * i of a new one (or a fixed index, where there is none)."""
    axes = []
    for axis in view.axes:
        terms = []
        for term in axis.terms:
            weights = {atom: weight for atom, weight in term.weights.items() if atom not in changes}
            offset = 0
            for atom, (first, step, part) in changes.items():
                offset += first * term.weights.get(atom, 0)
                if part is not None and atom in term.weights:
                    weights[part] = term.weights[atom] * step
            moved = Term(term.largest, term.shortest, weights)
            if offset:
                moved = term.mapped(lambda units, o=offset, w=weights: units.through([(o,)], 1, _reach(w)), weights)  # type: ignore[misc]
            terms.append(moved)
        axes.append(_with_terms(axis, _unified(terms)))
    return View((*view.dims[:dim], atoms, *view.dims[dim + 1 :]), tuple(axes))


# -- reading neighbours along one dimension ---------------------------------------------------------------------------------------


def along(view: View, dim: int, n_out: int, change: Callable[[Units], Units], what: str) -> View:
    """Let a layer read units along one dimension of a map.

    Args:
        view: the map.
        dim: the dimension.
        n_out: its new size.
        change: from the units of the dimension to the new ones.
        what: the layer, for the reason if it cannot be followed.

    Returns:
        The new map. An axis whose places are not all in this dimension becomes unknown.
    """
    view = solid(merged(view))
    atoms = view.dims[dim]
    touched = any(_touched(view, atom) for atom in atoms)
    new = Atom(n_out)
    axes = tuple(_axis_along(axis, atoms, new, change, f"{what}: dimension {dim}") for axis in view.axes)
    return View((*view.dims[:dim], (new,) if touched else fresh(n_out), *view.dims[dim + 1 :]), axes)


def _axis_along(axis: AxisView, atoms: Dim, new: Atom, change: Callable[[Units], Units], what: str) -> AxisView:
    if axis.loose and any(atom.opaque for atom in atoms):
        if axis.everything:  # stays so; only how much the shortest path sees is lost
            return axis
        return replace(axis, unknown=axis.unknown or f"{what} holds places that are not known")
    here = [any(atom in term.weights for atom in atoms) for term in axis.terms]
    if not any(here):
        return axis
    if len(atoms) != 1 or any(set(term.weights) != {atoms[0]} for term, yes in zip(axis.terms, here, strict=True) if yes):
        return replace(axis, unknown=axis.unknown or f"{what} mixes places of several windows or axes", terms=())
    moved = (reindexed(t, atoms, atoms[0]).mapped(change, {new: 1}) if yes else t for t, yes in zip(axis.terms, here, strict=True))
    return _with_terms(axis, _unified(list(moved)))


def noted(view: View, note: str) -> View:
    """Add a note to every axis that reads anything."""
    return View(view.dims, tuple(replace(axis, notes=axis.notes | {note}) if axis.terms else axis for axis in view.axes))


# -- joining ----------------------------------------------------------------------------------------------------------------------


def _refined(dims: Sequence[Dim]) -> tuple[list[int], list[list[int]]] | None:
    """Sizes of atoms that all operands can share, and how many of them each own atom becomes; None if there are none."""
    rest = [[atom.size for atom in reversed(dim)] for dim in dims]
    shared: list[int] = []
    while any(rest):
        if not all(rest):
            return None
        least = min(row[-1] for row in rest)
        if any(row[-1] % least for row in rest):
            return None
        shared.append(least)
        for row in rest:
            row[-1] //= least
            if row[-1] == 1:
                row.pop()
    return shared, [_counts(dim, shared) for dim in dims]


def _counts(dim: Dim, shared: Sequence[int]) -> list[int]:
    counts, position = [], 0
    for atom in dim:
        count, have = 0, 1
        while have < atom.size:
            have *= shared[position + count]
            count += 1
        counts.append(count)
        position += count
    return counts


def renamed(view: View) -> View:
    """The same description in atoms of its own, for a tensor that meets itself along another dimension."""
    return _split(view, {atom: (Atom(atom.size, atom.opaque),) for dim in view.dims for atom in dim})


def joined(views: Sequence[View]) -> View:
    """An element-wise operation of several tensors, with broadcasting."""
    rank = max(len(view.dims) for view in views)
    views = _apart([View(((),) * (rank - len(view.dims)) + view.dims, view.axes) for view in views])
    shape = tuple(max(sizes) if 0 not in sizes else 0 for sizes in zip(*(view.shape for view in views), strict=True))
    dims: list[Dim] = []
    for position, size in enumerate(shape):
        full = [index for index, view in enumerate(views) if view.shape[position] == size]
        first = views[full[0]].dims[position]
        if all(views[index].dims[position] == first for index in full):
            dims.append(first)
        else:
            target, lists = _shared(views, full, position, size)
            if target is None:
                return merged(_all_lost(views, shape))
            for index, mapping in lists.items():
                views[index] = _split(views[index], mapping)
            dims.append(target)
        for index in set(range(len(views))) - set(full):
            gone = set(views[index].dims[position])
            views[index] = View(views[index].dims, tuple(_dropped(axis, gone) for axis in views[index].axes))
    return merged(_joined_axes(views, tuple(dims)))


def _apart(views: Sequence[View]) -> list[View]:
    """Rename the atoms of operands that have one where another operand has it along another dimension."""
    places: dict[Atom, int] = {}
    result = []
    for view in views:
        clash = any(places.get(atom, position) != position for position, dim in enumerate(view.dims) for atom in dim)
        own = renamed(view) if clash else view
        places.update({atom: position for position, dim in enumerate(own.dims) for atom in dim})
        result.append(own)
    return result


def _shared(views: Sequence[View], full: Sequence[int], position: int, size: int) -> tuple[Dim | None, dict[int, dict[Atom, Dim]]]:
    """Atoms that all operands can use for one dimension, and how each operand's own are replaced by them."""
    own = {index: views[index].dims[position] for index in full}
    if size == 1:
        target = max(own.values(), key=len)
        return target, {i: dict(zip(dim, ((atom,) for atom in target), strict=False)) for i, dim in own.items() if dim is not target}
    matter = [i for i in full if any(atom.opaque or _touched(views[i], atom) for atom in own[i])]
    if len(matter) <= 1:
        chosen = matter[0] if matter else full[0]
        target = own[chosen]
        return target, {i: dict.fromkeys(dim, ()) for i, dim in own.items() if i != chosen}
    if any(atom.opaque or atom.size == 1 for i in matter for atom in own[i]):
        return None, {}
    refined = _refined([own[i] for i in matter])
    if refined is None:
        return None, {}
    target = tuple(Atom(part) for part in refined[0])
    lists: dict[int, dict[Atom, Dim]] = {i: dict.fromkeys(own[i], ()) for i in full if i not in matter}
    for index, row in zip(matter, refined[1], strict=True):
        lists[index], at = {}, 0
        for atom, count in zip(own[index], row, strict=True):
            lists[index][atom] = target[at : at + count]
            at += count
    return target, lists


def _joined_axes(views: Sequence[View], dims: tuple[Dim, ...]) -> View:
    axes = []
    for parts in zip(*(view.axes for view in views), strict=True):
        loose = any(axis.loose for axis in parts)
        terms = [t if not loose else Term(t.largest, t.shortest, {}) for axis in parts for t in axis.terms]
        reason = next((axis.unknown for axis in parts if axis.unknown), "")
        notes = frozenset().union(*(axis.notes for axis in parts))
        axes.append(AxisView(tuple(_unified(terms)), any(axis.everything for axis in parts), loose, reason, notes))
    return View(dims, tuple(axes))


def concatenated(views: Sequence[View], dim: int) -> View:
    """``torch.cat(views, dim)``."""
    sizes = [view.shape[dim] for view in views]
    total = sum(sizes)
    if not any(_touched(view, atom) or atom.opaque for view in views for atom in view.dims[dim]):
        views = [View((*view.dims[:dim], (), *view.dims[dim + 1 :]), view.axes) for view in views]
        whole = joined(views)
        return View((*whole.dims[:dim], fresh(total), *whole.dims[dim + 1 :]), whole.axes)
    views = [merged(view) for view in views]
    atoms = [view.dims[dim][0] if len(view.dims[dim]) == 1 else None for view in views]
    new = Atom(total)
    shifted, before = [], 0
    for view, atom, size in zip(views, atoms, sizes, strict=True):
        placed = _placed(view, dim, atom, before, total, new)
        if placed is None:
            shape = (*views[0].shape[:dim], total, *views[0].shape[dim + 1 :])
            return _all_lost(views, shape)
        shifted.append(placed)
        before += size
    whole = joined([View((*view.dims[:dim], (), *view.dims[dim + 1 :]), view.axes) for view in shifted])
    return View((*whole.dims[:dim], (new,), *whole.dims[dim + 1 :]), whole.axes)


def _placed(view: View, dim: int, atom: Atom | None, before: int, total: int, new: Atom) -> View | None:
    """One part of a concatenation, its units moved to where they stand in the whole; None if that cannot be told."""
    axes = []
    for axis in view.axes:
        if axis.loose:
            return None
        terms = []
        for term in axis.terms:
            if not any(a in term.weights for a in view.dims[dim]):
                terms.append(term)  # the same for every place: stays so in the whole
                continue
            if atom is None or set(term.weights) != {atom}:
                return None
            own = reindexed(term, (atom,), atom)
            index = [(i - before,) if 0 <= i - before < atom.size else (-1,) for i in range(total)]
            terms.append(own.mapped(lambda units, index=index: units.gather(index), {new: 1}))  # type: ignore[misc]
        axes.append(_with_terms(axis, terms))
    return View(view.dims, tuple(axes))
