//! Drafting from what the target knew: levels of evidence from distributions.
//!
//! The latest occurrence of a context brings the target's own distribution there, which says more than the token that was drawn
//! from it. The dice of the token to be drafted are thrown over each such distribution, and what they pick is its vote. Votes are
//! mixed like counts (see `blend.rs`), with parts that are learned (`trust.rs`): own text and history, longest context first, then
//! what is kept of drafts that were not kept, then what follows the last token where the target would likeliest have said the same
//! one instead, then what follows one or two tokens over all problems, then what the request's text is made of.

use crate::{
    backoff::{Backoff, ENTRIES, Key},
    blend::{Share, in_units},
    id::{Pos, SeqId, TOKEN_LIMIT, Token},
    latest::Observation,
    locus::Locus,
    mixture::Mixture,
    noise::{Coupling, throw},
    text::CHUNK,
    tree::{Lore, Tree},
    trust::{Cell, Kind, Verdict},
};

/// Contexts used per source: more gain nothing.
const LEVELS: usize = 2;
/// Votes below this are not counted.
const LEAST_VOTE: f32 = 0.003;
/// Entries of the distribution of what a text is made of, and how far back it looks.
pub(crate) const RECENT: usize = 64;
const RECENT_MEMORY: u32 = 32;

/// What a running sequence knows beside its text.
#[derive(Debug, Default)]
pub(crate) struct Insight {
    /// Whether distributions came with it.
    pub(crate) informed: bool,
    /// What its output has been made of lately; kept once distributions have come.
    recent: Mixture<RECENT>,
    /// What the target would likeliest have said instead of the last token, where that is known.
    pub(crate) instead: Option<Token>,
    /// The evidence of the last draft about the token that comes next.
    pending: Evidence,
}

/// Levels of evidence about one token, longest context first, with their votes.
#[derive(Debug, Default)]
pub(crate) struct Evidence {
    levels: Vec<Level>,
    votes: Vec<(Token, f32)>,
    /// What counts had to say before: their shares, and what they left.
    counted: Vec<(Token, Share)>,
    left: f32,
    /// What was drafted: token, index of the node above, what evidence gave it there.
    drafted: Vec<(Token, i32, Share)>,
    /// The two likeliest tokens of the first distribution heard, of the own output or history.
    foreseen: Option<[Option<Token>; 2]>,
}

#[derive(Clone, Copy, Debug)]
struct Level {
    cell: Cell,
    /// Where its votes end.
    end: usize,
}

/// Where to look for evidence.
#[derive(Clone, Copy)]
pub(crate) struct Sources<'a> {
    pub(crate) tree: &'a Tree,
    /// Prompt and output of the request, and the length of the prompt, which is not in the tree.
    pub(crate) own: &'a [Token],
    pub(crate) prompt: usize,
    /// The sequence, unless the text is none of the tree's, and the chunks its output is in.
    pub(crate) id: Option<SeqId>,
    pub(crate) chunks: &'a [u32],
    pub(crate) insight: Option<&'a Insight>,
    pub(crate) coupling: Coupling,
}

impl Insight {
    /// From now on distributions come; so far the output came without.
    pub(crate) fn inform(&mut self, output: &[Token]) {
        if !self.informed {
            self.informed = true;
            let bare = output.iter().map(|&token| Observation::bare(token));
            bare.for_each(|seen| self.recent.learn(&seen, RECENT_MEMORY));
        }
    }

    /// Takes in tokens that have come, before the tree does: learns how good the last draft's evidence was. `text` is what was
    /// before them.
    pub(crate) fn learn(
        &mut self,
        tree: &Tree,
        text: &[Token],
        tokens: &[Token],
        known: impl Iterator<Item = Observation>,
    ) {
        let backoff = &tree.lore.backoff;
        self.pending.judge(backoff, tokens);
        let mut last = text.last().copied();
        for observation in known {
            if let Some((key, _, _)) = beside_context(&tree.lore, last, self.instead) {
                backoff.learn(key, &observation);
            }
            self.instead = observation.instead();
            if self.informed {
                self.recent.learn(&observation, RECENT_MEMORY);
            }
            last = Some(observation.token);
        }
    }

    /// Bytes beside itself.
    pub(crate) fn memory_usage(&self) -> usize {
        let Evidence {
            levels,
            votes,
            counted,
            drafted,
            ..
        } = &self.pending;
        levels.capacity() * size_of::<Level>()
            + 8 * votes.capacity()
            + 12 * counted.capacity()
            + 16 * drafted.capacity()
    }

    /// No draft is made.
    pub(crate) fn expect_nothing(&mut self) {
        self.pending.clear();
    }

    /// The evidence of this draft about the next token.
    pub(crate) fn expect(&mut self, evidence: &Evidence) {
        self.pending.copy(evidence);
    }
}

impl Evidence {
    pub(crate) fn clear(&mut self) {
        self.levels.clear();
        self.votes.clear();
        self.counted.clear();
        self.drafted.clear();
        self.foreseen = None;
        self.left = 1.0;
    }

    fn copy(&mut self, other: &Self) {
        self.clear();
        self.levels.extend_from_slice(&other.levels);
        self.votes.extend_from_slice(&other.votes);
        self.counted.extend_from_slice(&other.counted);
        self.drafted.extend_from_slice(&other.drafted);
        self.left = other.left;
    }

    /// Notes what counts had to say.
    pub(crate) fn counted(&mut self, shares: &[(Token, Share)], left: f32) {
        self.counted.extend_from_slice(shares);
        self.left = left;
    }

    /// Notes what was drafted.
    pub(crate) fn drafted(&mut self, token: Token, parent: i32, share: Share) {
        self.drafted.push((token, parent, share));
    }

    /// The two likeliest tokens as far as the evidence tells.
    pub(crate) fn foreseen(&self) -> [Option<Token>; 2] {
        self.foreseen.unwrap_or_default()
    }

    /// Number of levels.
    pub(crate) fn len(&self) -> usize {
        self.levels.len()
    }

    /// The levels with their votes.
    pub(crate) fn levels(&self) -> impl Iterator<Item = (Cell, &[(Token, f32)])> {
        let starts = std::iter::once(0).chain(self.levels.iter().map(|level| level.end));
        let level = |(level, start): (&Level, usize)| (level.cell, &self.votes[start..level.end]);
        self.levels.iter().zip(starts).map(level)
    }

    fn close(&mut self, kind: Kind, length: u32, occurrences: u64) {
        let end = self.votes.len();
        let cell = Cell::new(kind, length, occurrences);
        self.levels.push(Level { cell, end });
    }

    /// Learns what estimates are worth from the nodes that followed what came.
    fn compare(&self, backoff: &Backoff, tokens: &[Token]) {
        let mut at = -1;
        for &token in tokens {
            let mut next = None;
            for (i, &(drafted, parent, share)) in self.drafted.iter().enumerate() {
                if parent == at {
                    let came = drafted == token;
                    backoff
                        .calibration
                        .learn(share.estimate, share.voices, came);
                    next = next.or(came.then_some(i as i32));
                }
            }
            match next {
                Some(next) => at = next,
                None => return,
            }
        }
    }

    /// Learns from the tokens that came, and forgets.
    fn judge(&mut self, backoff: &Backoff, tokens: &[Token]) {
        let Some(&token) = tokens.first() else {
            return;
        };
        const MOST: usize = 16;
        let share = |votes: &[(Token, f32)]| {
            let vote = votes.iter().find(|vote| vote.0 == token);
            vote.map_or(0.0, |vote| vote.1)
        };
        let mut verdicts: [Verdict; MOST] = [(Cell::new(Kind::Own, 1, 1), 0.0); MOST];
        let mut len = 0;
        for (verdict, (cell, votes)) in verdicts.iter_mut().zip(self.levels()) {
            *verdict = (cell, share(votes));
            len += 1;
        }
        if len > 0 {
            let counted = self.counted.iter().find(|counted| counted.0 == token);
            let before = counted.map_or(0.0, |counted| counted.1.estimate);
            backoff.trust.learn(&verdicts[..len], before, self.left);
        }
        self.compare(backoff, tokens);
        self.clear();
    }

    /// Adds a level: the dice over what was seen after a context.
    fn add_seen(
        &mut self,
        (kind, length, occurrences): (Kind, u32, u64),
        seen: &Observation,
        coupling: Coupling,
        depth: u32,
    ) {
        if kind != Kind::Prompt && self.foreseen.is_none() {
            let mut likeliest = seen.distribution.tokens().iter().copied();
            self.foreseen = Some([likeliest.next(), likeliest.next()]);
        }
        if seen.distribution.is_empty() {
            self.votes.push((seen.token, 1.0));
        } else {
            let dice = coupling.dice(depth);
            throw(
                dice,
                seen.distribution.entries(),
                LEAST_VOTE,
                &mut self.votes,
            );
        }
        self.close(kind, length, occurrences);
    }

    /// Adds a level for the row after a context, if there is one.
    pub(crate) fn add_row(&mut self, sources: &Sources, context: RowContext, depth: u32) {
        let (key, kind, length) = context;
        let mut mixture = Mixture::<ENTRIES>::default();
        if sources.tree.lore.backoff.read(key, &mut mixture) {
            let dice = sources.coupling.dice(depth);
            throw(dice, mixture.entries(), LEAST_VOTE, &mut self.votes);
            self.close(kind, length, u64::from(mixture.seen));
        }
    }

    /// Adds what the request's text is made of, with the dice of each depth thrown once.
    pub(crate) fn add_recent(
        &mut self,
        sources: &Sources,
        depth: u32,
        thrown: &mut Vec<Vec<(Token, f32)>>,
        filled: &mut usize,
    ) {
        let Some(insight) = sources.insight.filter(|insight| insight.informed) else {
            return;
        };
        while *filled <= depth as usize {
            if thrown.len() == *filled {
                thrown.push(Vec::new());
            }
            let votes = &mut thrown[*filled];
            votes.clear();
            let dice = sources.coupling.dice(*filled as u32);
            throw(dice, insight.recent.entries(), LEAST_VOTE, votes);
            *filled += 1;
        }
        self.votes.extend_from_slice(&thrown[depth as usize]);
        self.close(Kind::Recent, 1, 1);
    }
}

/// The position of an output token in the tree's text, given the chunks the output is in.
pub(crate) fn place(chunks: &[u32], output: usize) -> Pos {
    let offset = output as u32 + 1; // after the start marker
    chunks[(offset / CHUNK) as usize] * CHUNK + offset % CHUNK
}

/// The last three tokens, oldest first, where there are so many.
pub(crate) type Last = [Option<Token>; 3];

/// The last tokens of a text.
pub(crate) fn last_of(text: &[Token]) -> Last {
    [3, 2, 1].map(|back| text.len().checked_sub(back).map(|at| text[at]))
}

/// A row's key, its kind of evidence and the context's length.
pub(crate) type RowContext = (Key, Kind, u32);

/// The contexts of the rows over all problems, in the order they are asked.
pub(crate) fn shared_contexts(last: Last) -> [Option<RowContext>; 3] {
    let [third, second, first] = last;
    let pair = |other: Option<Token>| Some([other?, first?]);
    [
        pair(third).map(|context| (Key::apart(&context), Kind::SharedApart, 2)),
        pair(second).map(|context| (Key::shared(&context), Kind::Shared, 2)),
        first.map(|first| (Key::shared(&[first]), Kind::Shared, 1)),
    ]
}

/// The contexts of the rows of a problem's drafts that were not kept, in the order they are asked.
pub(crate) fn rejected_contexts(problem: u64, [_, second, first]: Last) -> [Option<RowContext>; 2] {
    let row = |context: &[Token]| {
        let key = Key::rejected(problem, context);
        (key, Kind::Rejected, context.len() as u32)
    };
    let pair = second.zip(first);
    [
        pair.map(|(second, first)| row(&[second, first])),
        first.map(|first| row(&[first])),
    ]
}

/// The context of the row of what follows the last token where the target would likeliest have said the same one instead:
/// that tells more of what it is about than the token alone.
pub(crate) fn beside_context(
    lore: &Lore,
    last: Option<Token>,
    instead: Option<Token>,
) -> Option<RowContext> {
    let (last, instead) = last.zip(instead).filter(|_| lore.soft)?;
    let key = Key::beside(lore.problem, [last, instead]);
    Some((key, Kind::Beside, 1))
}

impl Sources<'_> {
    /// The own token at a place, and what was known there.
    pub(crate) fn observation(&self, at: usize) -> Observation {
        let token = self.own[at];
        let Some(output) = at
            .checked_sub(self.prompt)
            .filter(|_| !self.chunks.is_empty())
        else {
            return Observation::bare(token);
        };
        Observation {
            token,
            distribution: self.tree.text.known(place(self.chunks, output), 0),
        }
    }
}

/// Collects the levels of own text and history at a node, longest context first, own text first among equals.
pub(crate) struct Merge<'a> {
    pub(crate) sources: Sources<'a>,
    pub(crate) depth: u32,
    pub(crate) evidence: &'a mut Evidence,
    pub(crate) own: usize,
    pub(crate) history: usize,
    last_total: u64,
}

impl<'a> Merge<'a> {
    pub(crate) fn new(sources: Sources<'a>, depth: u32, evidence: &'a mut Evidence) -> Self {
        Self {
            sources,
            depth,
            evidence,
            own: 0,
            history: 0,
            last_total: 0,
        }
    }

    pub(crate) fn wants_own(&self) -> bool {
        self.own < LEVELS
    }

    pub(crate) fn wants_history(&self) -> bool {
        self.history < LEVELS
    }

    /// A context of the own text that occurred so often, last before `next`.
    pub(crate) fn add_own(&mut self, length: u32, occurrences: u64, next: usize) {
        let seen = self.sources.observation(next);
        if seen.token < TOKEN_LIMIT {
            self.own += 1;
            let kind = match next < self.sources.prompt {
                true => Kind::Prompt,
                false if seen.distribution.is_empty() => Kind::OwnSure,
                false => Kind::Own,
            };
            let what = (kind, length, occurrences);
            self.evidence
                .add_seen(what, &seen, self.sources.coupling, self.depth);
        }
    }

    /// A context of the history; `own` is the weight of its occurrences in the own text.
    pub(crate) fn add_history(&mut self, at: &Locus, length: u32, own: u64) {
        let tree = self.sources.tree;
        let total = tree.total(at).saturating_sub(own);
        if total == 0 || total == self.last_total {
            return;
        }
        let Some(seen) = tree.latest(at, self.sources.id) else {
            return;
        };
        self.last_total = total;
        self.history += 1;
        let kind = if seen.distribution.is_empty() {
            Kind::HistorySure
        } else {
            Kind::History
        };
        let what = (kind, length, in_units(total, tree.unit()));
        self.evidence
            .add_seen(what, &seen, self.sources.coupling, self.depth);
    }
}
