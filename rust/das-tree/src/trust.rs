//! How far each kind of evidence is trusted, learned from what came.
//!
//! Stick-breaking, as in `blend.rs`: evidence in order, each taking a part of the probability that is left. The parts start
//! at values fitted on recorded rollouts and follow the traffic at hand: after each token, what share of it each kind deserved
//! is known by Bayes' rule, and that moves its part.

use crate::ratio::Ratio;

/// Kinds of evidence from distributions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The latest occurrence of a context in the request's own text.
    Own,
    /// The latest one in the problem's other rollouts.
    History,
    /// Drafts of the problem that were not kept, after the last two tokens, or the last.
    Rejected,
    /// All problems', after the last two tokens, or the last.
    Shared,
    /// All problems', after the last token and the last but two.
    SharedApart,
    /// What the request's own text has been made of lately.
    Recent,
    /// The latest occurrence of a context in the request's prompt.
    Prompt,
    /// As `Own` and `History`, where the token drawn was nearly certain.
    OwnSure,
    HistorySure,
    /// The problem's, after the last token where the target would likeliest have said the same one instead.
    Beside,
}

const KINDS: usize = 10;
const LENGTHS: usize = 6;
const COUNTS: usize = 4;
const CELLS: usize = KINDS * LENGTHS * COUNTS;

/// Observations a starting value stands for, and how many are remembered.
const PRIOR: f32 = 20.0;
const MEMORY: f32 = 4096.0;

/// One kind of evidence: kind, length of the context, occurrences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cell(u8);

impl Cell {
    pub(crate) fn new(kind: Kind, length: u32, occurrences: u64) -> Self {
        let length = match length {
            0 | 1 => 0,
            2 => 1,
            3 | 4 => 2,
            5..=8 => 3,
            9..=16 => 4,
            _ => 5,
        };
        let count = match occurrences {
            0 | 1 => 0,
            2 => 1,
            3 | 4 => 2,
            _ => 3,
        };
        Self(((kind as usize * LENGTHS + length) * COUNTS + count) as u8)
    }

    /// Where it starts.
    fn start(self) -> f32 {
        const OWN: [[f32; COUNTS]; LENGTHS] = [
            [0.23, 0.32, 0.32, 0.52],
            [0.42, 0.47, 0.57, 0.58],
            [0.45, 0.55, 0.70, 0.72],
            [0.55, 0.68, 0.73, 0.74],
            [0.60, 0.70, 0.75, 0.76],
            [0.60, 0.70, 0.75, 0.76],
        ];
        const HISTORY: [[f32; COUNTS]; LENGTHS] = [
            [0.11, 0.19, 0.27, 0.18],
            [0.17, 0.24, 0.31, 0.18],
            [0.25, 0.30, 0.38, 0.18],
            [0.48, 0.61, 0.68, 0.65],
            [0.50, 0.62, 0.70, 0.70],
            [0.50, 0.62, 0.70, 0.70],
        ];
        let cell = usize::from(self.0);
        let (kind, length, count) = (
            cell / (LENGTHS * COUNTS),
            cell / COUNTS % LENGTHS,
            cell % COUNTS,
        );
        match kind {
            0 | 6 | 7 => OWN[length][count],
            1 | 8 => HISTORY[length][count],
            2 => [0.43, 0.30][length.min(1)],
            3 if length == 0 => [0.40, 0.46, 0.56, 0.64][count],
            3 | 4 => [0.39, 0.53, 0.58, 0.65][count],
            9 => [0.30, 0.41, 0.47, 0.52][count],
            _ => 0.42,
        }
    }
}

/// Evidence in a given order, longest context first: what each piece is, and the probability it gave the token that came.
pub(crate) type Verdict = (Cell, f32);

/// What a token nobody named is taken to have had.
const UNNAMED: f32 = 2e-5;

/// The parts of all kinds.
#[derive(Debug)]
pub(crate) struct Trust {
    /// Deserved of offered.
    cells: Box<[Ratio]>,
}

impl Default for Trust {
    fn default() -> Self {
        let cell = |cell: usize| Ratio::new(Cell(cell as u8).start(), PRIOR);
        Self {
            cells: (0..CELLS).map(cell).collect(),
        }
    }
}

impl Trust {
    /// Words of all parts.
    pub(crate) const WORDS: usize = Ratio::WORDS * CELLS;

    /// The part evidence of this kind takes of what is left.
    pub(crate) fn part(&self, cell: Cell) -> f32 {
        self.cells[usize::from(cell.0)].share()
    }

    /// All parts, as words.
    pub(crate) fn words(&self) -> impl Iterator<Item = u32> + '_ {
        self.cells.iter().flat_map(Ratio::words)
    }

    /// Puts back what [`Self::words`] has given, where it makes sense.
    pub(crate) fn restore(&self, words: &[u32]) {
        for (cell, words) in self.cells.iter().zip(words.chunks_exact(Ratio::WORDS)) {
            cell.restore(words, MEMORY);
        }
    }

    /// Learns from a token that has come. `before` is the probability that longer evidence of other kinds gave it, `left`
    /// what that left over.
    pub(crate) fn learn(&self, verdicts: &[Verdict], before: f32, left: f32) {
        // What the evidence from each place on gives the token, per probability left there: computed backwards.
        let rest = |from: usize| {
            verdicts[from..]
                .iter()
                .rev()
                .fold(UNNAMED, |rest, &(cell, given)| {
                    let part = self.part(cell);
                    part * given + (1.0 - part) * rest
                })
        };
        let all = left * rest(0);
        let mut reach = all / (before + all).max(f32::MIN_POSITIVE);
        for (i, &(cell, given)) in verdicts.iter().enumerate() {
            if reach < 1e-3 {
                return;
            }
            let part = self.part(cell);
            let (here, later) = (part * given, (1.0 - part) * rest(i + 1));
            let deserved = here / (here + later);
            self.cells[usize::from(cell.0)].learn(deserved, reach, MEMORY);
            reach *= 1.0 - deserved;
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn parts_become_the_frequencies_with_which_kinds_are_right() {
        let trust = Trust::default();
        let first = Cell::new(Kind::Own, 3, 1);
        let second = Cell::new(Kind::Shared, 1, 9);
        // One names the token three times in ten; the other, when the first was wrong, half the time.
        for i in 0..40_000 {
            let right = i % 10 < 3;
            let named = right || i % 10 < 5 || i % 20 == 6 || i % 20 == 17;
            let verdicts = [
                (first, f32::from(u8::from(right))),
                (second, f32::from(u8::from(named && !right))),
            ];
            trust.learn(&verdicts, 0.0, 1.0);
        }
        assert!(
            (trust.part(first) - 0.3).abs() < 0.02,
            "{}",
            trust.part(first)
        );
        let expected = 3.0 / 7.0;
        assert!(
            (trust.part(second) - expected).abs() < 0.03,
            "{}",
            trust.part(second)
        );
    }

    #[test]
    fn what_longer_evidence_has_explained_teaches_nothing() {
        let trust = Trust::default();
        let cell = Cell::new(Kind::History, 5, 3);
        let before = trust.part(cell);
        (0..100).for_each(|_| trust.learn(&[(cell, 0.0)], 0.99, 0.0001));
        assert_eq!(trust.part(cell), before);
    }

    #[test]
    fn every_kind_has_a_cell_of_its_own() {
        let kinds = [
            Kind::Own,
            Kind::History,
            Kind::Rejected,
            Kind::Shared,
            Kind::SharedApart,
            Kind::Recent,
            Kind::Prompt,
            Kind::OwnSure,
            Kind::HistorySure,
            Kind::Beside,
        ];
        let mut cells: Vec<u8> = kinds
            .iter()
            .flat_map(|&kind| [1, 2, 3, 5, 9, 17].map(|n| (kind, n)))
            .flat_map(|(kind, n)| [1, 2, 3, 5].map(|count| Cell::new(kind, n, count).0))
            .collect();
        cells.sort_unstable();
        cells.dedup();
        assert_eq!(cells, (0..CELLS as u8).collect::<Vec<_>>());
    }
}
