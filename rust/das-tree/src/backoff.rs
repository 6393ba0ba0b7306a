//! What is learnt over all problems, or too cheaply to be a tree's: which tokens follow a few others, bounded in memory.
//!
//! A table of rows, each the mean distribution after one context: one or two tokens, two with one between them that does
//! not matter, or one token and what could have been in its place. A context's bucket is given by its hash; a new one takes
//! the place of the one in its bucket seen least. Rows are guarded by a version that is odd while somebody writes: a reader
//! who meets a writer goes without the row, a writer who meets another leaves what it had to say. Nobody waits.
//!
//! The table is read all over, so it lies in huge pages, as many as it needs: its buckets follow one another as they are made.

use crate::{
    calibration::Calibration,
    id::{NONE, Token},
    latest::Observation,
    mixture::Mixture,
    sync::{AtomicU32, OnceLock, Ordering, Words, fence, fetch},
    trust::Trust,
};

/// Entries of a row. A model makes do with two.
pub(crate) const ENTRIES: usize = if cfg!(loom) { 2 } else { 16 };
/// Distributions after which the newest weighs as much as the next.
const MEMORY: u32 = 16;
/// Contexts in a bucket.
const WAYS: usize = 4;
/// Most buckets of a table, and bytes of a history's budget for each.
const MAX_BUCKETS: usize = 1 << 16;
const BUDGET_PER_BUCKET: usize = 64 * BUCKET * size_of::<AtomicU32>();
/// Words of a row's head: its version, odd while it is written; how many distributions it has seen; the context's hash, zero in
/// an unused row.
const HEAD: usize = 4;
const VERSION: usize = 0;
const SEEN: usize = 1;
const KEY: usize = 2;
/// Words of a bucket: the heads of its rows, which are a cache line, then the entries of each, which are another.
const BUCKET: usize = WAYS * (HEAD + ENTRIES);
/// Words of a cache line.
const LINE: usize = 16;
/// Buckets to spare for threads that race for a slot.
const SPARE: usize = if cfg!(loom) { 2 } else { 64 };
/// Buckets in a slab, which fills a huge page.
const SLAB: usize = das_pages::HUGE / 4 / BUCKET;
/// An entry is a word: a token below 2^19, no model has as many, and its share in 8191sts. Zero if unused; those in use come first.
const SHARE_BITS: u32 = 13;
const UNIT: f32 = SHARE_MASK as f32;
const SHARE_MASK: u32 = (1 << SHARE_BITS) - 1;
const ROW_TOKENS: Token = 1 << (32 - SHARE_BITS);
/// Words of a row in a file: key, number seen, tokens, shares of 16 bits.
const ROW_WORDS: usize = 3 + ENTRIES + ENTRIES / 2;
const FILE_SHIFT: u32 = 16 - SHARE_BITS;

/// The table, how far its rows, and other distributions, are trusted, and what estimates are worth.
#[derive(Debug)]
pub(crate) struct Backoff {
    /// For each hash a bucket's number, from 1 on; [`NONE`] until something is learned there.
    slots: OnceLock<Box<[AtomicU32]>>,
    /// How many slots there are once there are any.
    size: usize,
    /// Buckets by number, and how many have been given out. Where threads race for a slot one stays unused.
    slabs: Box<[OnceLock<Words>]>,
    given: AtomicU32,
    pub(crate) trust: Trust,
    pub(crate) calibration: Calibration,
}

/// Rows that a context may be in. What tells them apart lies in one cache line: looking for a row is one miss.
#[derive(Clone, Copy, Debug)]
struct Bucket<'a>(&'a [AtomicU32]);

/// A row of a bucket: what it is about, and what it says.
#[derive(Clone, Copy, Debug)]
struct Row<'a> {
    head: &'a [AtomicU32],
    entries: &'a [AtomicU32],
}

/// A context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key(u64);

impl Key {
    /// The context of `tokens` over all problems.
    pub(crate) fn shared(tokens: &[Token]) -> Self {
        Self::mix(1, tokens)
    }

    /// The context of a token and the last but two before it, whatever is between, over all problems: where texts differ in
    /// one token, it is the first to agree again.
    pub(crate) fn apart(tokens: &[Token]) -> Self {
        Self::mix(2, tokens)
    }

    /// The context of `tokens` in drafts of a problem that were not kept.
    pub(crate) fn rejected(problem: u64, tokens: &[Token]) -> Self {
        Self::mix(problem ^ 0x9E37_79B9_7F4A_7C15, tokens)
    }

    /// The context of a problem's token and of what the target would likeliest have said instead.
    pub(crate) fn beside(problem: u64, tokens: [Token; 2]) -> Self {
        Self::mix(problem ^ 0xD1B5_4A32_D192_ED03, &tokens)
    }

    fn mix(domain: u64, tokens: &[Token]) -> Self {
        let scramble = |state: u64, word: u64| {
            let state = (state ^ word).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            state ^ state >> 29
        };
        let state = scramble(domain, tokens.len() as u64 + 1);
        let all = tokens
            .iter()
            .fold(state, |state, &token| scramble(state, u64::from(token)));
        Self(all | 1) // never zero
    }
}

impl Backoff {
    /// A table that grows to at most a sixteenth of a budget of bytes, or so.
    pub(crate) fn new(budget: usize) -> Self {
        let buckets = (budget / BUDGET_PER_BUCKET).min(MAX_BUCKETS);
        let buckets = if buckets == 0 {
            0
        } else {
            1 << buckets.ilog2()
        };
        let slabs = (buckets + SPARE).div_ceil(SLAB);
        Self {
            slots: OnceLock::new(),
            size: buckets,
            slabs: (0..slabs).map(|_| OnceLock::new()).collect(),
            given: AtomicU32::new(0),
            trust: Trust::default(),
            calibration: Calibration::default(),
        }
    }

    pub(crate) fn memory_usage(&self) -> usize {
        let slots = self.slots.get().map_or(&[][..], |slots| slots);
        let slabs = self.slabs.iter().filter_map(OnceLock::get);
        let words = slots.len() + slabs.map(|slab| slab.len()).sum::<usize>();
        words * size_of::<AtomicU32>()
    }

    /// The mean distribution after a context, into `mixture`; whether there is one.
    pub(crate) fn read(&self, key: Key, mixture: &mut Mixture<ENTRIES>) -> bool {
        let row = self.made_bucket(key).and_then(|bucket| bucket.find(key));
        row.is_some_and(|row| row.read(key, mixture))
    }

    /// Asks for the memory that tells where a context's bucket is.
    pub(crate) fn fetch_slot(&self, key: Key) {
        if let Some(slot) = self.slots.get().and_then(|slots| self.slot(slots, key)) {
            fetch(slot);
        }
    }

    /// Asks for the memory of a context's bucket, which is told where [`Self::fetch_slot`] has asked.
    pub(crate) fn fetch(&self, key: Key) {
        if let Some(Bucket(words)) = self.made_bucket(key) {
            words.chunks(LINE).for_each(|line| fetch(&line[0]));
        }
    }

    /// Learns what followed a context.
    pub(crate) fn learn(&self, key: Key, observation: &Observation) {
        if let Some(bucket) = self.bucket(key) {
            bucket.find_or_give(key).learn(key, observation);
        }
    }

    /// All there is, as words: the parts that are trusted, what estimates are worth, then the rows in use.
    pub(crate) fn words(&self) -> Vec<u32> {
        let mut words: Vec<u32> = self.trust.words().chain(self.calibration.words()).collect();
        let slots = self.slots.get().map_or(&[][..], |slots| slots);
        let made = slots.iter().filter_map(|slot| self.made(slot));
        for row in made.flat_map(|bucket| bucket.rows()) {
            row.write_words(&mut words);
        }
        words
    }

    /// Puts back what [`Self::words`] has given, into an empty table of perhaps another size.
    pub(crate) fn restore(&self, words: &[u32]) {
        let Some((trust, rest)) = words.split_at_checked(Trust::WORDS) else {
            return;
        };
        let Some((calibration, rows)) = rest.split_at_checked(Calibration::WORDS) else {
            return;
        };
        self.trust.restore(trust);
        self.calibration.restore(calibration);
        for row in rows.chunks_exact(ROW_WORDS) {
            let key = Key(u64::from(row[1]) << 32 | u64::from(row[0]));
            if let Some(bucket) = self.bucket(key) {
                bucket.find_or_give(key).restore(key, &row[2..]);
            }
        }
    }

    /// The bucket of a context, if it has been made.
    fn made_bucket(&self, key: Key) -> Option<Bucket<'_>> {
        self.made(self.slot(self.slots.get()?, key)?)
    }

    /// The bucket of a slot, if it has been made.
    fn made(&self, slot: &AtomicU32) -> Option<Bucket<'_>> {
        let number = slot.load(Ordering::Relaxed); // as long as the slab is not visible there is none
        let at = number.checked_sub(1)? as usize;
        let words = self.slabs.get(at / SLAB)?.get()?;
        let start = at % SLAB * BUCKET;
        words.get(start..start + BUCKET).map(Bucket) // or there was no room
    }

    /// The bucket of a context, made if need be and if there is room.
    fn bucket(&self, key: Key) -> Option<Bucket<'_>> {
        if self.slots.get().is_none() {
            let slots = (0..self.size).map(|_| AtomicU32::new(NONE)).collect();
            let _ = self.slots.set(slots); // or somebody else's
        }
        let slot = self.slot(self.slots.get()?, key)?;
        // Relaxed: the exchange decides.
        if slot.load(Ordering::Relaxed) == NONE {
            let number = self.give()?;
            // If another thread was first, it is that one's.
            let _ = slot.compare_exchange(NONE, number, Ordering::Relaxed, Ordering::Relaxed); // see `made`
        }
        self.made(slot)
    }

    /// The number of a fresh bucket.
    fn give(&self) -> Option<u32> {
        let at = self.given.fetch_add(1, Ordering::Relaxed); // only uniqueness matters
        let slab = self.slabs.get(at as usize / SLAB)?;
        if slab.get().is_none() {
            let buckets = SLAB.min(self.size + SPARE);
            let _ = slab.set(Words::zeroed(buckets * BUCKET).ok()?); // or somebody else's
        }
        Some(at + 1)
    }

    fn slot<'a>(&self, slots: &'a [AtomicU32], key: Key) -> Option<&'a AtomicU32> {
        slots.get((key.0 >> 32) as usize & self.size.wrapping_sub(1))
    }
}

impl<'a> Bucket<'a> {
    fn rows(self) -> impl Iterator<Item = Row<'a>> {
        let (heads, entries) = self.0.split_at(WAYS * HEAD);
        let pairs = heads.chunks_exact(HEAD).zip(entries.chunks_exact(ENTRIES));
        pairs.map(|(head, entries)| Row { head, entries })
    }

    /// The row of a context.
    fn find(self, key: Key) -> Option<Row<'a>> {
        self.rows().find(|row| row.is_of(key)) // looked at again under the version
    }

    /// The row of a context, or the one it may have.
    fn find_or_give(self, key: Key) -> Row<'a> {
        let seen = |row: &Row| row.head[SEEN].load(Ordering::Relaxed); // a preference
        self.find(key)
            .unwrap_or_else(|| self.rows().min_by_key(seen).expect("a bucket has rows"))
    }
}

impl Row<'_> {
    /// The context's hash.
    fn key(&self) -> u64 {
        let [low, high] = [KEY, KEY + 1].map(|word| self.head[word].load(Ordering::Relaxed)); // checked by the version
        u64::from(high) << 32 | u64::from(low)
    }

    fn set_key(&self, key: Key) {
        self.head[KEY].store(key.0 as u32, Ordering::Relaxed); // this and the next: published by the version
        self.head[KEY + 1].store((key.0 >> 32) as u32, Ordering::Relaxed);
    }

    fn is_of(&self, key: Key) -> bool {
        self.key() == key.0
    }

    /// What `look` finds in the row, if nobody writes it meanwhile.
    fn undisturbed<T>(&self, look: impl FnOnce() -> T) -> Option<T> {
        let version = &self.head[VERSION];
        let before = version.load(Ordering::Acquire); // what is read below was written before this version or later
        if before % 2 == 1 {
            return None;
        }
        let found = look();
        fence(Ordering::Acquire); // if any of it was written later, the version below has moved
        (version.load(Ordering::Relaxed) == before).then_some(found)
    }

    fn read(&self, key: Key, mixture: &mut Mixture<ENTRIES>) -> bool {
        let look = || {
            let is_its = self.is_of(key);
            if is_its {
                self.copy(mixture);
            }
            is_its
        };
        self.undisturbed(look) == Some(true)
    }

    fn copy(&self, mixture: &mut Mixture<ENTRIES>) {
        mixture.seen = self.head[SEEN].load(Ordering::Relaxed); // checked by the version
        mixture.len = 0;
        for (token, share) in self.raw() {
            let entry = mixture.len as usize;
            (mixture.tokens[entry], mixture.shares[entry]) = (token, share as f32 / UNIT);
            mixture.len += 1;
        }
    }

    /// The tokens in use with their shares, as they are kept.
    fn raw(&self) -> impl Iterator<Item = (Token, u32)> {
        let words = self.entries.iter();
        let words = words.map(|word| word.load(Ordering::Relaxed)); // checked by the version
        let used = words.take_while(|&word| word > 0);
        used.map(|word| (word >> SHARE_BITS, word & SHARE_MASK))
    }

    /// Takes the row to write it, unless somebody else has; returns the version to leave it with.
    fn take(&self) -> Option<u32> {
        let version = self.head[VERSION].load(Ordering::Relaxed); // a guess, checked by the exchange
        let taken = version.is_multiple_of(2)
            && self.head[VERSION]
                .compare_exchange(version, version + 1, Ordering::Acquire, Ordering::Relaxed) // sees what the last writer wrote
                .is_ok();
        if !taken {
            return None;
        }
        fence(Ordering::Release); // a reader that sees any store that follows sees the odd version too
        Some(version.wrapping_add(2))
    }

    fn learn(&self, key: Key, observation: &Observation) {
        let Some(version) = self.take() else {
            return;
        };
        let mut mixture = Mixture::default();
        let mut used = ENTRIES;
        if self.is_of(key) {
            self.copy(&mut mixture);
            used = mixture.len as usize;
        } else {
            self.set_key(key);
        }
        mixture.learn(observation, MEMORY);
        self.head[SEEN].store(mixture.seen, Ordering::Relaxed); // this and all below: published by the version
        let entries = mixture.entries();
        self.put(
            entries.map(|(token, share)| (token, (share * UNIT) as u32)),
            used,
        );
        self.leave(version);
    }

    /// Writes entries over the first `used`, without those whose share is nothing.
    fn put(&self, entries: impl Iterator<Item = (Token, u32)>, used: usize) {
        let kept = entries.filter(|&(token, share)| share > 0 && token < ROW_TOKENS);
        let words = kept.map(|(token, share)| token << SHARE_BITS | share);
        let mut len = 0;
        for (cell, word) in self.entries.iter().zip(words) {
            cell.store(word, Ordering::Relaxed); // published by the version
            len += 1;
        }
        for cell in self.entries.iter().take(used).skip(len) {
            cell.store(0, Ordering::Relaxed); // as above
        }
    }

    /// Leaves a row that was taken.
    fn leave(&self, version: u32) {
        self.head[VERSION].store(version, Ordering::Release); // publishes the row
    }

    /// The row as words, unless it is unused or just now written.
    fn write_words(&self, words: &mut Vec<u32>) {
        let from = words.len();
        let look = || {
            let key = self.key();
            let seen = self.head[SEEN].load(Ordering::Relaxed); // this and what follows: checked by the version
            words.extend([key as u32, (key >> 32) as u32, seen]);
            let start = words.len();
            words.resize(start + ENTRIES + ENTRIES / 2, 0);
            let (tokens, shares) = words[start..].split_at_mut(ENTRIES);
            for (i, (token, share)) in self.raw().enumerate() {
                tokens[i] = token;
                shares[i / 2] |= share << FILE_SHIFT << (16 * (i % 2));
            }
            key
        };
        if self.undisturbed(look).is_none_or(|key| key == 0) {
            words.truncate(from);
        }
    }

    fn restore(&self, key: Key, words: &[u32]) {
        let Some(version) = self.take() else {
            return;
        };
        self.set_key(key);
        self.head[SEEN].store(words[0], Ordering::Relaxed); // published by the version
        let (tokens, pairs) = words[1..].split_at(ENTRIES);
        let shares = pairs.iter().flat_map(|pair| [pair & 0xffff, pair >> 16]);
        let shares = shares.map(|share| share >> FILE_SHIFT);
        self.put(tokens.iter().copied().zip(shares), ENTRIES);
        self.leave(version);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn table() -> Backoff {
        Backoff::new(1 << 22)
    }

    #[test]
    fn a_row_is_the_mean_of_what_followed() {
        let (table, mut mixture) = (table(), Mixture::default());
        let key = Key::shared(&[7, 8]);
        assert!(!table.read(key, &mut mixture));
        for token in [1, 2, 1, 1] {
            table.learn(key, &Observation::bare(token));
        }
        assert!(table.read(key, &mut mixture));
        assert_eq!(mixture.seen, 4);
        let entries: Vec<_> = mixture.entries().collect();
        assert_eq!(entries.len(), 2);
        assert!((entries[0].1 - 0.75).abs() < 1e-3 && entries[0].0 == 1);
        assert!(!table.read(Key::shared(&[8]), &mut mixture));
        assert!(!table.read(Key::rejected(0, &[7, 8]), &mut mixture));
    }

    #[test]
    fn memory_is_bounded_and_what_is_seen_often_stays() {
        let table = table();
        let often = Key::shared(&[3]);
        (0..50).for_each(|_| table.learn(often, &Observation::bare(4)));
        for token in 0..200_000 {
            table.learn(Key::shared(&[token, 1]), &Observation::bare(token));
        }
        assert!(table.memory_usage() <= 1 << 18, "{}", table.memory_usage());
        assert!(table.read(often, &mut Mixture::default()));
    }

    #[test]
    fn tokens_that_no_model_has_are_left_out() {
        let (table, mut mixture) = (table(), Mixture::default());
        let key = Key::shared(&[1 << 30]);
        for token in [ROW_TOKENS, ROW_TOKENS - 1, 5, u32::MAX >> 1] {
            table.learn(key, &Observation::bare(token));
        }
        assert!(table.read(key, &mut mixture));
        let tokens: Vec<_> = mixture.entries().map(|entry| entry.0).collect();
        assert_eq!(tokens, [ROW_TOKENS - 1, 5]);
    }

    #[test]
    fn what_is_learned_survives_words_and_another_size() {
        let (table, small) = (table(), Backoff::new(1 << 20));
        for token in 0..40 {
            table.learn(Key::shared(&[token % 7]), &Observation::bare(token));
        }
        small.restore(&table.words());
        for token in 0..7 {
            let key = Key::shared(&[token]);
            let [mut before, mut after] = [Mixture::default(); 2];
            assert!(table.read(key, &mut before) && small.read(key, &mut after));
            assert_eq!(before, after);
        }
        assert_eq!(small.words().len(), table.words().len());
    }

    #[test]
    fn a_table_without_room_for_more_goes_on_with_what_it_has() {
        let table = table();
        let before = Key::shared(&[1]);
        table.learn(before, &Observation::bare(2));
        for _ in 0..table.size + SPARE {
            table.give();
        }
        (0..5000).for_each(|token| table.learn(Key::shared(&[token]), &Observation::bare(token)));
        assert!(table.read(before, &mut Mixture::default()));
        assert!(!table.read(Key::shared(&[4999]), &mut Mixture::default()));
    }

    #[test]
    fn a_small_budget_has_no_table() {
        let table = Backoff::new(1000);
        table.learn(Key::shared(&[3]), &Observation::bare(4));
        assert!(!table.read(Key::shared(&[3]), &mut Mixture::default()));
        assert_eq!(table.memory_usage(), 0);
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use crate::sync::Arc;

    /// A row that has been written for a context, its first distribution being one token.
    fn row(key: Key, token: Token) -> Arc<Parts> {
        let parts = Parts::new();
        parts.row().learn(key, &Observation::bare(token));
        Arc::new(parts)
    }

    struct Parts(Words);

    impl Parts {
        fn new() -> Self {
            Self(Words::zeroed(HEAD + ENTRIES).unwrap())
        }

        fn row(&self) -> Row<'_> {
            let (head, entries) = self.0.split_at(HEAD);
            Row { head, entries }
        }
    }

    /// What there is of a context: how many distributions, and the tokens.
    fn read(parts: &Parts, key: Key) -> Option<(u32, Vec<Token>)> {
        let mut mixture = Mixture::default();
        let found = parts.row().read(key, &mut mixture);
        let tokens = || mixture.entries().map(|entry| entry.0).collect();
        found.then(|| (mixture.seen, tokens()))
    }

    /// Of two that need a bucket which is not there at least one learns, and in the one that stays.
    #[test]
    fn bucket_that_two_make_is_there() {
        loom::model(|| {
            let table = Arc::new(Backoff::new(BUDGET_PER_BUCKET));
            // The rest of the table is there.
            table.give().unwrap();
            table.slots.set([AtomicU32::new(NONE)].into()).unwrap();
            let (key, mut mixture) = (Key::shared(&[7]), Mixture::default());
            let other = {
                let table = Arc::clone(&table);
                loom::thread::spawn(move || table.learn(key, &Observation::bare(1)))
            };
            table.learn(key, &Observation::bare(2));
            other.join().unwrap();
            assert!(table.read(key, &mut mixture));
            let mut tokens: Vec<_> = mixture.entries().map(|entry| entry.0).collect();
            tokens.sort_unstable();
            assert!([&[1][..], &[2], &[1, 2]].contains(&&tokens[..]));
            assert_eq!(mixture.seen as usize, tokens.len());
        });
    }

    /// While a row is written a reader goes without it, or has it as it was before or is afterwards: never parts of both.
    #[test]
    fn row_is_read_whole_or_not_at_all() {
        loom::model(|| {
            let key = Key::shared(&[7]);
            let row = row(key, 1);
            let (before, after) = ((1, vec![1]), (2, vec![1, 2]));
            let reader = {
                let (row, after) = (Arc::clone(&row), after.clone());
                loom::thread::spawn(move || {
                    let seen = read(&row, key);
                    assert!(seen.is_none_or(|seen| seen == before || seen == after));
                })
            };
            row.row().learn(key, &Observation::bare(2));
            reader.join().unwrap();
            assert_eq!(read(&row, key), Some(after));
        });
    }

    /// When a row goes to another context, nobody finds what is known of one under the other.
    #[test]
    fn row_that_changes_hands_is_of_one_context() {
        loom::model(|| {
            let (old, new) = (Key::shared(&[7]), Key::shared(&[8]));
            let row = row(old, 1);
            let reader = {
                let row = Arc::clone(&row);
                loom::thread::spawn(move || {
                    assert!(read(&row, new).is_none_or(|seen| seen == (1, vec![2])));
                    assert!(read(&row, old).is_none_or(|seen| seen == (1, vec![1])));
                })
            };
            row.row().learn(new, &Observation::bare(2));
            reader.join().unwrap();
            assert_eq!(
                (read(&row, old), read(&row, new)),
                (None, Some((1, vec![2])))
            );
        });
    }

    /// Of two that write at once one may go without, but who comes second goes on from all that the first wrote.
    #[test]
    fn row_of_two_writers_is_one_or_the_other_or_both() {
        loom::model(|| {
            let key = Key::shared(&[7]);
            let row = Arc::new(Parts::new());
            let other = {
                let row = Arc::clone(&row);
                loom::thread::spawn(move || row.row().learn(key, &Observation::bare(1)))
            };
            row.row().learn(key, &Observation::bare(2));
            other.join().unwrap();
            let (seen, mut tokens) = read(&row, key).expect("one of them was first");
            tokens.sort_unstable();
            let expected = [&[][..], &[1], &[2], &[1, 2]];
            assert!(expected.contains(&&tokens[..]));
            assert_eq!(
                (seen, row.0[VERSION].load(Ordering::Relaxed)),
                (tokens.len() as u32, 2 * seen)
            );
        });
    }
}
