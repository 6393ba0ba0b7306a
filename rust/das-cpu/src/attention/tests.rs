//! Against naive attention in float64, and bit for bit against itself in every other arrangement.

use super::*;
use crate::bf16::Bf16;

/// A small generator, so that failures repeat.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        self.0 >> 33
    }
    fn below(&mut self, n: usize) -> usize {
        self.next() as usize % n
    }
    fn float(&mut self) -> f32 {
        (self.next() as f32 / (1u64 << 31) as f32 - 0.5) * 4.0
    }
}

trait Element: Copy + PartialEq + std::fmt::Debug {
    const DTYPE: Dtype;
    fn from(value: f32) -> Self;
    fn value(self) -> f64;
}

impl Element for f32 {
    const DTYPE: Dtype = Dtype::F32;
    fn from(value: f32) -> Self {
        value
    }
    fn value(self) -> f64 {
        f64::from(self)
    }
}

impl Element for Bf16 {
    const DTYPE: Dtype = Dtype::Bf16;
    fn from(value: f32) -> Self {
        Self::from_f32(value)
    }
    fn value(self) -> f64 {
        f64::from(self.to_f32())
    }
}

struct Pool<E> {
    heads: Heads,
    keys: Vec<E>,
    values: Vec<E>,
    slots: usize,
}

impl<E: Element> Pool<E> {
    fn new(heads: Heads, slots: usize, random: &mut Random) -> Self {
        let keys = (0..slots * heads.key_value * heads.key_dim)
            .map(|_| E::from(random.float()))
            .collect();
        let values = (0..slots * heads.key_value * heads.value_dim)
            .map(|_| E::from(random.float()))
            .collect();
        Self {
            heads,
            keys,
            values,
            slots,
        }
    }

    fn run(&self, batch: Batch<'_>, query: &[E], threads: usize, isa: Isa) -> Vec<E> {
        let heads = self.heads;
        let plan = Plan::new(batch).unwrap();
        let mut output = vec![E::from(0.0); plan.rows() * heads.query * heads.value_dim];
        let tensors = Tensors {
            query: query.as_ptr() as usize,
            query_stride: heads.query * heads.key_dim,
            key: self.keys.as_ptr() as usize,
            key_stride: heads.key_value * heads.key_dim,
            value: self.values.as_ptr() as usize,
            value_stride: heads.key_value * heads.value_dim,
            output: output.as_mut_ptr() as usize,
            output_stride: heads.query * heads.value_dim,
        };
        // SAFETY: all tensors live here and have the shapes stated.
        unsafe { attend(&plan, heads, E::DTYPE, &tensors, 0.3, threads, isa) };
        output
    }

    /// One row over its visible slots, in float64.
    fn naive(&self, query: &[E], visible: &[u32]) -> Vec<f64> {
        let Heads {
            query: n,
            key_value,
            key_dim,
            value_dim,
        } = self.heads;
        let mut output = Vec::new();
        for head in 0..n {
            let kv = head / (n / key_value);
            let q = &query[head * key_dim..][..key_dim];
            let scores: Vec<f64> = visible
                .iter()
                .map(|&slot| {
                    let k = &self.keys[(slot as usize * key_value + kv) * key_dim..][..key_dim];
                    0.3 * q
                        .iter()
                        .zip(k)
                        .map(|(a, b)| a.value() * b.value())
                        .sum::<f64>()
                })
                .collect();
            let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = scores.iter().map(|s| (s - highest).exp()).sum();
            for d in 0..value_dim {
                let weighted = visible.iter().zip(&scores).map(|(&slot, s)| {
                    (s - highest).exp()
                        * self.values[(slot as usize * key_value + kv) * value_dim + d].value()
                });
                output.push(weighted.sum::<f64>() / total);
            }
        }
        output
    }
}

/// A request with its rows; `parent[i] < i` for each row but the first makes a tree.
struct Case<E> {
    slots: Vec<u32>,
    prefix: usize,
    parent: Vec<usize>,
    query: Vec<E>,
}

impl<E: Element> Case<E> {
    fn new(pool: &Pool<E>, prefix: usize, rows: usize, tree: bool, random: &mut Random) -> Self {
        let slots = (0..prefix + rows)
            .map(|_| random.below(pool.slots) as u32)
            .collect();
        let parent = (0..rows)
            .map(|i| {
                if tree {
                    random.below(i.max(1))
                } else {
                    i.saturating_sub(1)
                }
            })
            .collect();
        let query = (0..rows * pool.heads.query * pool.heads.key_dim)
            .map(|_| E::from(random.float()))
            .collect();
        Self {
            slots,
            prefix,
            parent,
            query,
        }
    }

    fn rows(&self) -> usize {
        self.parent.len()
    }

    /// The draft rows that row i sees, itself last.
    fn path(&self, mut i: usize) -> Vec<usize> {
        let mut path = vec![i];
        while i > 0 {
            i = self.parent[i];
            path.push(i);
        }
        path.reverse();
        path
    }

    fn visible(&self, i: usize) -> Vec<u32> {
        let drafts = self
            .path(i)
            .into_iter()
            .map(|j| self.slots[self.prefix + j]);
        self.slots[..self.prefix]
            .iter()
            .copied()
            .chain(drafts)
            .collect()
    }

    fn mask(&self) -> Vec<bool> {
        let n = self.rows();
        let mut mask = vec![false; n * n];
        for i in 0..n {
            for j in self.path(i) {
                mask[i * n + j] = true;
            }
        }
        mask
    }
}

fn check<E: Element>(heads: Heads, isa: Isa, seed: u64) {
    let random = &mut Random(seed);
    let pool = Pool::<E>::new(heads, 400, random);
    let shapes = [
        (0, 1),
        (0, 70),
        (62, 3),
        (63, 8),
        (64, 5),
        (1, 130),
        (300, 1),
        (255, 9),
    ];
    for tree in [false, true] {
        let cases: Vec<Case<E>> = shapes
            .iter()
            .map(|&(p, n)| Case::new(&pool, p, n, tree, random))
            .collect();
        let slots: Vec<u32> = cases.iter().flat_map(|c| c.slots.clone()).collect();
        let prefix: Vec<usize> = cases.iter().map(|c| c.prefix).collect();
        let rows: Vec<usize> = cases.iter().map(Case::rows).collect();
        let query: Vec<E> = cases.iter().flat_map(|c| c.query.clone()).collect();
        let mask: Vec<bool> = cases.iter().flat_map(Case::mask).collect();
        let batch = Batch {
            slots: &slots,
            prefix: &prefix,
            rows: &rows,
            mask: tree.then_some(&mask),
            new_slots: &[],
            pool_slots: pool.slots,
        };
        let together = pool.run(batch, &query, 1, isa);
        assert_eq!(
            together,
            pool.run(batch, &query, 3, isa),
            "threads change bits"
        );
        if !tree {
            let masked = Batch {
                mask: Some(&mask),
                ..batch
            };
            assert_eq!(
                together,
                pool.run(masked, &query, 2, isa),
                "a chain's mask changes bits"
            );
        }
        let (q, o) = (heads.query * heads.key_dim, heads.query * heads.value_dim);
        let mut row = 0;
        for case in &cases {
            for i in 0..case.rows() {
                let visible = case.visible(i);
                let own = &case.query[i * q..(i + 1) * q];
                let alone = Batch {
                    slots: &visible,
                    prefix: &[visible.len() - 1],
                    rows: &[1],
                    mask: None,
                    new_slots: &[],
                    pool_slots: pool.slots,
                };
                let result = &together[row * o..(row + 1) * o];
                assert_eq!(
                    result,
                    pool.run(alone, own, 1, isa),
                    "row {i} of prefix {} as a decode row",
                    case.prefix
                );
                for (got, want) in result.iter().zip(pool.naive(own, &visible)) {
                    let tolerance = if E::DTYPE == Dtype::F32 { 2e-5 } else { 2e-2 };
                    assert!(
                        (got.value() - want).abs() < tolerance,
                        "{got:?} should be {want}"
                    );
                }
                row += 1;
            }
        }
    }
}

#[test]
fn rows_have_the_same_bits_in_every_arrangement_and_match_the_formula() {
    for isa in Isa::available() {
        for (query, key_value, key_dim, value_dim) in [
            (9, 3, 64, 64),
            (4, 4, 16, 16),
            (6, 1, 80, 80),
            (5, 1, 33, 7),
            (2, 2, 128, 96),
            (2, 1, 1, 1),
        ] {
            let heads = Heads::new(query, key_value, key_dim, value_dim).unwrap();
            check::<f32>(heads, isa, 1);
            check::<Bf16>(heads, isa, 2);
        }
    }
}

#[test]
fn values_a_row_does_not_see_never_reach_it() {
    let heads = Heads::new(3, 1, 64, 64).unwrap();
    let random = &mut Random(3);
    for isa in Isa::available() {
        let mut pool = Pool::<Bf16>::new(heads, 300, random);
        let slots: Vec<u32> = (0..260).collect();
        let query: Vec<Bf16> = (0..4 * 3 * 64)
            .map(|_| Bf16::from_f32(random.float()))
            .collect();
        let batch = Batch {
            slots: &slots,
            prefix: &[256],
            rows: &[4],
            mask: None,
            new_slots: &[],
            pool_slots: 300,
        };
        let clean = pool.run(batch, &query, 1, isa);
        for slot in 257..260 {
            pool.values[slot * 64..(slot + 1) * 64].fill(Bf16::from_f32(f32::INFINITY));
            pool.keys[slot * 64..(slot + 1) * 64].fill(Bf16::from_f32(f32::NAN));
        }
        assert_eq!(
            pool.run(batch, &query, 1, isa)[..3 * 64],
            clean[..3 * 64],
            "{isa:?}"
        );
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let good = Batch {
        slots: &[0, 1, 2],
        prefix: &[2],
        rows: &[1],
        mask: None,
        new_slots: &[],
        pool_slots: 3,
    };
    assert!(Plan::new(good).is_ok());
    for bad in [
        Batch {
            slots: &[0, 1, 3],
            ..good
        },
        Batch {
            slots: &[0, 1],
            ..good
        },
        Batch {
            prefix: &[2, 1],
            ..good
        },
        Batch {
            mask: Some(&[true; 2]),
            ..good
        },
    ] {
        assert!(Plan::new(bad).is_err(), "{bad:?}");
    }
    assert!(Heads::new(9, 2, 64, 64).is_err());
    assert!(Heads::new(9, 3, 0, 64).is_err());
}
