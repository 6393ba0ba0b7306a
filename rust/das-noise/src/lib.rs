//! The noise of seeded sampling: murmur3 over (seed low, seed high, position, column), as in SGLang's
//! `kernels/ops/sampling/murmur_hash.py`. The sampler and whoever wants to know beforehand what it will throw share it.
#![forbid(unsafe_code)]

const C1: u32 = 0xCC9E_2D51;
const C2: u32 = 0x1B87_3593;
const LENGTH: u32 = 16;

/// A block before it is folded into the state. Depends on the block only, so that columns can be prepared once.
#[inline(always)]
pub fn scramble(block: u32) -> u32 {
    block.wrapping_mul(C1).rotate_left(15).wrapping_mul(C2)
}

#[inline(always)]
fn fold(state: u32, scrambled: u32) -> u32 {
    (state ^ scrambled)
        .rotate_left(13)
        .wrapping_mul(5)
        .wrapping_add(0xE654_6B64)
}

/// The state after seed and position: what the columns of one row share.
#[inline]
pub fn row_state(seed: i64, position: i64) -> u32 {
    let seed = seed as u64;
    let mut state = fold(0, scramble(seed as u32));
    state = fold(state, scramble((seed >> 32) as u32));
    fold(state, scramble(position as u32))
}

/// The hash of a scrambled column in a row.
#[inline(always)]
pub fn finish(row_state: u32, scrambled_column: u32) -> u32 {
    let mut h = fold(row_state, scrambled_column) ^ LENGTH;
    h ^= h >> 16;
    h = h.wrapping_mul(0x85EB_CA6B);
    h ^= h >> 13;
    h = h.wrapping_mul(0xC2B2_AE35);
    h ^ (h >> 16)
}

/// Scrambled columns of consecutive numbers: the first multiplication becomes an addition.
#[derive(Clone, Copy, Debug)]
pub struct Scrambled(u32);

/// The scrambled columns from `column` on.
pub fn scramble_step(column: u32) -> Scrambled {
    Scrambled(column.wrapping_mul(C1))
}

impl Scrambled {
    /// The one so many columns on.
    #[inline(always)]
    pub fn lane(self, lane: usize) -> u32 {
        self.0
            .wrapping_add(C1.wrapping_mul(lane as u32))
            .rotate_left(15)
            .wrapping_mul(C2)
    }

    /// Moves so many columns on.
    #[inline(always)]
    pub fn advance(&mut self, columns: u32) {
        self.0 = self.0.wrapping_add(C1.wrapping_mul(columns));
    }
}

/// The hash of (seed, position, column).
#[inline]
pub fn murmur(row_state: u32, column: u32) -> u32 {
    finish(row_state, scramble(column))
}

#[cfg(test)]
mod tests {
    use super::{murmur, row_state};

    /// Textbook murmur3 x86 32 over bytes.
    fn reference(bytes: &[u8]) -> u32 {
        let mut h = 0u32;
        for chunk in bytes.chunks_exact(4) {
            let mut k = u32::from_le_bytes(chunk.try_into().unwrap());
            k = k
                .wrapping_mul(0xcc9e2d51)
                .rotate_left(15)
                .wrapping_mul(0x1b873593);
            h = (h ^ k)
                .rotate_left(13)
                .wrapping_mul(5)
                .wrapping_add(0xe6546b64);
        }
        h ^= bytes.len() as u32;
        h = (h ^ (h >> 16)).wrapping_mul(0x85ebca6b);
        h = (h ^ (h >> 13)).wrapping_mul(0xc2b2ae35);
        h ^ (h >> 16)
    }

    #[test]
    fn equals_murmur3_over_sixteen_bytes() {
        for (seed, position, column) in [
            (0i64, 0i64, 0u32),
            (42, 7, 49151),
            (-1, 123_456, 1),
            (i64::MIN, 4_000_000_000, 77),
        ] {
            let mut bytes = seed.to_le_bytes().to_vec();
            bytes.extend((position as u32).to_le_bytes());
            bytes.extend(column.to_le_bytes());
            assert_eq!(murmur(row_state(seed, position), column), reference(&bytes));
        }
    }
}
