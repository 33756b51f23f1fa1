"""Quest, SnapKV, H2O, TOVA, MInference, XAttention, Reformer, each derived again in plain loops."""

import numpy as np
import pytest

import sparse_ref as sr
from sparse_ref import mechanisms as me
from sparse_ref import selection as se


def text(n=21, h=4, g=2, d=3, seed=0):
    rng = np.random.default_rng((seed, n, h))
    return rng.standard_normal((2, h, n, d)), rng.standard_normal((2, g, n, d))


def softmax(s):
    w = np.exp(s - s.max())
    return w / w.sum()


def best(scores, count):
    """The places of the greatest, of equal ones the first."""
    return set(sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:count])


def sets(selection, batch=0):
    """What every row of every list holds."""
    return [[set(row.tolist()) - {-1} for row in rows] for rows in selection.indices[batch]]


# -- Quest ----------------------------------------------------------------------------------------


def by_signs(q, k, count, size, upto):
    """The released trick: keys times the query's signs, their maximum, the query's sizes."""
    signs = np.where(q > 0, 1, -1)
    pages = [k[i : min(i + size, upto)] * signs for i in range(0, upto, size)]
    bounds = [float(abs(q) @ page.max(axis=0)) for page in pages]
    return best(bounds, count)


@pytest.mark.parametrize("m", [21, 1])
def test_quest_by_the_released_codes_trick(m):
    q, k = text()
    q = q[:, :, -m:]
    got = se.quest(q, k, count=3, page_size=4)
    for b, h, row in np.ndindex(2, 4, m):
        want = by_signs(q[b, h, row], k[b, h // 2], 3, 4, 21 - m + row + 1)
        assert sets(got, b)[h][row] == want


def test_quests_bound_is_no_less_than_any_score_and_its_page_may_hold_no_key_that_reaches_it():
    q, k = text(n=32)
    bounds = np.array([
        [np.maximum(q[0, 0, -1] * k[0, 0, i : i + 4], -np.inf).max(axis=0).sum()] for i in
        range(0, 32, 4)
    ])  # fmt: skip
    scores = (k[0, 0] @ q[0, 0, -1]).reshape(8, 4).max(axis=1)

    assert (bounds[:, 0] >= scores).all()
    assert se.quest(np.ones((1, 1, 2)), np.array([[[3.0, 0], [0, 3.0], [2, 2], [2, 2]]]), count=1,
                    page_size=2).indices.ravel().tolist() == [0]  # fmt: skip


def test_quest_does_not_force_the_current_page():
    q, k = np.ones((1, 1, 1)), np.array([[[2.0], [2.0], [1.0]]])

    assert se.quest(q, k, count=1, page_size=2).mask(1, 3)[0].tolist() == [[True, True, False]]


# -- caches ---------------------------------------------------------------------------------------


def attention(q, k, keys):
    """One query's probabilities at some keys, by key."""
    keys = sorted(keys)
    return dict(zip(keys, softmax(k[keys] @ q / np.sqrt(len(q))), strict=True))


@pytest.mark.parametrize("prompt", [1, 9])
def test_tova_step_by_step(prompt):
    q, k = text()
    got = se.tova(q, k, count=5, prompt=prompt)
    assert got.indices.shape[1] == 1
    for b in range(2):
        cache = set(range(prompt))
        for t in range(prompt - 1, 21):
            cache |= {t}
            assert sets(got, b)[0][t] == cache
            p = [attention(q[b, h, t], k[b, h // 2], cache) for h in range(4)]
            mean = {key: np.mean([one[key] for one in p]) for key in cache}
            cache = set(sorted(cache, key=lambda key: (-mean[key], key))[:5])
        assert all(sets(got, b)[0][t] == set(range(t + 1)) for t in range(prompt))


@pytest.mark.parametrize("prompt", [1, 9])
@pytest.mark.parametrize(("heavy", "recent"), [(2, 3), (0, 4), (4, 0)])
def test_h2o_step_by_step(heavy, recent, prompt):
    q, k = text()
    got = se.h2o(q, k, heavy=heavy, recent=recent, prompt=prompt)
    for b, h in np.ndindex(2, 4):
        score, cache = dict.fromkeys(range(21), 0.0), set()
        for t in range(21):
            seen = set(range(t + 1)) if t < prompt else cache | {t}
            assert sets(got, b)[h][t] == seen
            for key, p in attention(q[b, h, t], k[b, h // 2], seen).items():
                score[key] += p
            ordered = sorted(seen)
            late, early = (
                ordered[len(ordered) - min(recent, len(ordered)) :],
                ordered[: -recent or None],
            )
            if len(seen) <= heavy + recent:
                cache = seen
            else:
                hitters = sorted(early, key=lambda key: (-score[key], key))[:heavy]
                cache = set(late) | set(hitters)


@pytest.mark.parametrize(("heavy", "recent"), [(4, 2), (1, 3), (6, 0)])
def test_h2o_masked_step_by_step(heavy, recent):
    q, k = text()
    got = se.h2o_masked(q, k, heavy=heavy, recent=recent)
    for b, h in np.ndindex(2, 4):
        score = np.zeros(21)
        for t in range(21):
            p = np.zeros(21)
            p[: t + 1] = softmax(k[b, h // 2, : t + 1] @ q[b, h, t] / np.sqrt(3))
            if t < heavy:
                score += p
                assert sets(got, b)[h][t] == set(range(t + 1))
                continue
            kept = best(score[:t], heavy - 1) | {t}
            score = np.array([score[j] + p[j] if j in kept else 0 for j in range(21)])
            assert sets(got, b)[h][t] == kept | set(range(max(0, t - recent), t + 1))


def test_caches_that_are_large_enough_evict_nothing():
    q, k = text()
    whole = sr.Causal().mask(21, 21, heads=4)

    for one in (
        se.tova(q, k, count=21), se.h2o(q, k, heavy=20, recent=1),
        se.h2o_masked(q, k, heavy=21, recent=0),
    ):  # fmt: skip
        np.testing.assert_array_equal(one.mask(21, 21, heads=4), whole)


# -- what the last queries see --------------------------------------------------------------------


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("pool", ["mean", "max"])
def test_snapkv_by_loops(pool, grouped):
    q, k = text(n=19)
    got = se.snapkv(q, k, capacity=9, window=4, kernel=3, pool=pool, grouped=grouped)
    for b in range(2):
        pooled = np.zeros((4, 15))
        for h in range(4):
            mass = np.zeros(15)
            for t in range(15, 19):
                mass += softmax(k[b, h // 2, : t + 1] @ q[b, h, t] / np.sqrt(3))[:15]
            for j in range(15):
                around = mass[max(j - 1, 0) : j + 2]
                pooled[h, j] = around.sum() / 3 if pool == "mean" else around.max()
        lists = pooled.reshape(2, 2, 15).mean(axis=1) if grouped else pooled
        for row, scores in zip(sets(got, b), lists, strict=True):
            assert row == [best(scores, 5) | {15, 16, 17, 18}]


def test_after_snapkv_queries_see_what_stayed_and_everything_new():
    q, k = text(n=30)
    kept = se.snapkv(q[:, :, :19], k[:, :, :19], capacity=9, window=4)
    found = kept.mask(11, 30, heads=4, batch=1)
    for h in range(4):
        old = np.isin(np.arange(19), kept.indices[1, h, 0])
        for row in range(11):
            assert found[h, row].tolist() == [*old.tolist(), *(np.arange(11) <= row).tolist()]
    out = sr.attention(q[:, :, 19:], k, k, kept).out
    masks = [kept.mask(11, 30, heads=4, batch=b) for b in range(2)]
    mask = sr.PerBatch(
        [sr.PerHead([sr.from_mask(np.pad(x, ((19, 0), (0, 0)))) for x in one]) for one in masks]
    )
    np.testing.assert_array_equal(out, sr.attention(q[:, :, 19:], k, k, mask).out)


def test_short_prompts_stay_whole():
    q, k = text(n=9)

    assert se.snapkv(q, k, capacity=9, window=4).indices.tolist() == [[[list(range(9))]] * 4] * 2


def test_vertical_slash_by_loops():
    q, k = text(n=25)
    sizes = {"columns": 4, "offsets": 6, "last": 7, "initial": 2, "near": 3}
    got = se.vertical_slash(q, k, **sizes)
    for b, h in np.ndindex(2, 4):
        column, line = np.zeros(25), np.zeros(25)
        for t in range(18, 25):
            p = softmax(k[b, h // 2, : t + 1] @ q[b, h, t] / np.sqrt(3))
            column[: t + 1] += p
            line[: t + 1] += p[::-1]  # offset 0 is the query's own key
        column[:2] = line[:3] = np.inf
        pattern = sr.recipes.vertical_slash(best(column, 4), best(line, 6))
        np.testing.assert_array_equal(got.mask(25, 25, batch=b)[h], pattern.mask(25, 25)[0])


@pytest.mark.parametrize(("n", "m"), [(26, 26), (26, 14), (24, 12)])
@pytest.mark.parametrize("mass", [0.3, 0.7])
def test_xattention_by_loops(n, m, mass):
    """Strides of 3, blocks of 6: two groups a block, the last group not whole."""
    q, k = text(n=n)
    q = 3 * q[:, :, -m:]
    got = se.xattention(q, k, mass=mass, stride=3, block_size=6)
    first, groups = (n - m) // 3, -(-n // 3)

    def there(x, i):
        return x[i] if 0 <= i < len(x) else np.zeros(3)

    for b, h in np.ndindex(2, 4):
        held = np.zeros((-(-m // 6), -(-n // 6)))
        for a in range(first, groups):
            s = [
                sum(
                    there(q[b, h], 3 * (a - first) + 2 - r) @ there(k[b, h // 2], 3 * c + r)
                    for r in range(3)
                )
                for c in range(a + 1)
            ]
            for c, p in enumerate(softmax(np.array(s) / np.sqrt(3) / 3)):
                held[(a - first) // 2, c // 2] += p
        for row, masses in enumerate(held):
            own = row + (n - m) // 6
            kept = {0, own}
            for j in sorted(set(range(own)) - kept, key=lambda j: (-masses[j], j)):
                if masses[list(kept)].sum() < mass * masses.sum():
                    kept.add(j)
            assert sets(got, b)[h][row] == kept
            assert masses[list(kept)].sum() >= mass * masses.sum()


def test_xattention_sees_no_key_after_the_query():
    q, k = text(n=26)
    found = se.xattention(q, k, mass=1, stride=3, block_size=6)

    np.testing.assert_array_equal(found.mask(26, 26, heads=4), sr.Causal().mask(26, 26, heads=4))


# -- Reformer -------------------------------------------------------------------------------------


def test_lsh_is_the_support_of_the_mechanism():
    rng = np.random.default_rng(0)
    qk, v = rng.standard_normal((2, 3, 12, 4)), rng.standard_normal((2, 3, 12, 5))
    buckets = rng.integers(0, 4, (2, 3, 3, 12))
    chosen = se.lsh(qk, buckets, chunk_length=4)
    counted = me.reformer(qk, np.eye(12)[None, None].repeat(2, 0).repeat(3, 1), buckets,
                          chunk_length=4, causal=True).out  # fmt: skip
    for b in range(2):
        np.testing.assert_array_equal(chosen.mask(12, 12, batch=b), counted[b] > 0)
    one = se.lsh(qk, buckets[:, :, :1], chunk_length=12)  # everybody but itself
    want = sr.Causal() - sr.Offsets({0}) | sr.Keys({0}) & sr.Rows({0})
    np.testing.assert_array_equal(one.mask(12, 12, heads=3), want.mask(12, 12, heads=3))
    assert sr.attention(qk, qk, v, chosen).out.shape == v.shape


def test_lsh_looks_back_and_around():
    """Three buckets of 2, in chunks of 2: the first looks at the last."""
    buckets = np.array([[[0, 0, 1, 1, 2, 2]]])
    both = se.lsh(np.zeros((1, 6, 1)), buckets, chunk_length=2, visible=sr.Full())
    back = se.lsh(np.zeros((1, 6, 1)), buckets, chunk_length=2)

    assert sets(both)[0] == [{1, 4, 5}, {0, 4, 5}, {0, 1, 3}, {0, 1, 2}, {2, 3, 5}, {2, 3, 4}]
    assert sets(back)[0] == [{0}, {0}, {0, 1}, {0, 1, 2}, {2, 3}, {2, 3, 4}]


def test_nothing_after_the_query_is_listed_and_nothing_else_is_seen():
    q, k = text(n=24)
    buckets = np.random.default_rng(0).integers(0, 3, (2, 4, 2, 24))
    chosen = [
        se.quest(q, k, count=2, page_size=4), se.tova(q, k, count=4),
        se.h2o(q, k, heavy=2, recent=2), se.h2o_masked(q, k, heavy=3, recent=1),
        se.vertical_slash(q, k, columns=3, offsets=4, last=5),
        se.xattention(q, k, mass=0.4, stride=3, block_size=6), se.lsh(q, buckets, chunk_length=6),
    ]  # fmt: skip
    causal = np.tri(24, dtype=bool)
    for one in chosen:
        mask = one.mask(24, 24, heads=4, batch=1)
        for h, t in np.ndindex(4, 24):
            row = one.indices[1, h * one.indices.shape[1] // 4, t // one.query_block]
            listed = row[row >= 0]
            last = t // one.query_block * one.query_block + one.query_block - 1
            assert (listed * one.key_block <= last).all()
            want = np.isin(np.arange(24) // one.key_block, listed) & causal[t]
            np.testing.assert_array_equal(mask[h, t], want)


@pytest.mark.parametrize(("b", "n"), [(0, 5), (2, 0)])
def test_empty_batches_and_texts_are_answered(b, n):
    q, k = np.zeros((b, 4, n, 3)), np.zeros((b, 2, n, 3))
    chosen = [
        se.quest(q, k, count=2), se.tova(q, k, count=2), se.h2o(q, k, heavy=1, recent=1),
        se.h2o_masked(q, k, heavy=1, recent=1), se.vertical_slash(q, k), se.xattention(q, k),
    ]  # fmt: skip
    for one in chosen:
        assert sr.attention(q, k, k, one).out.shape == q.shape
    assert se.lsh(q, np.zeros((b, 4, 2, n), int)).indices.shape[0] == b
    assert se.snapkv(q, k).indices.shape[0] == b


# -- refusals -------------------------------------------------------------------------------------

Q, K = text()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: se.tova(Q[:, :, 1:], K, count=3), "q must have one query for each of the 21 keys"),
        (lambda: se.tova(Q, K, count=0), "count must be >= 1, got 0"),
        (lambda: se.h2o(Q, K, heavy=-1, recent=3), "heavy must be >= 0, got -1"),
        (lambda: se.h2o_masked(Q, K, heavy=0, recent=3), "heavy must be >= 1, got 0"),
        (lambda: se.snapkv(Q, K, capacity=8, window=8), "window must be <= 7, got 8"),
        (lambda: se.snapkv(Q, K, kernel=4), "kernel must be odd, got 4"),
        (lambda: se.snapkv(Q, K, pool="sum"), "pool must be one of mean, max, got 'sum'"),
        (lambda: se.vertical_slash(Q, K, last=0), "last must be >= 1, got 0"),
        (lambda: se.xattention(Q, K, stride=3, block_size=8), "block_size must be a multiple"),
        (lambda: se.xattention(Q[:, :, :5], K, stride=2, block_size=6), "must begin at a multiple"),
        (lambda: se.xattention(Q, K, mass=1.5), r"mass must be a number in \[0, 1\]"),
        (lambda: se.lsh(Q, np.zeros((2, 4, 1, 20), int)), "buckets must have shape"),
        (lambda: se.lsh(Q, np.zeros((2, 4, 1, 21), int), chunk_length=5), "must divide the length"),
        (lambda: se.quest(Q, K, count=1, page_size=0), "page_size must be >= 1"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
