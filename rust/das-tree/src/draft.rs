//! Drafting: blended contexts, best-first.
//!
//! At every drafted node the next-token distributions of a few contexts are mixed (see `blend.rs`), and the node with the
//! largest path probability is drafted next. Contexts are collected once, at the end of the text; below that each one is
//! carried down by the drafted token, and drops out where it has not been followed by it. Where the target's own
//! distributions are known they take the place of counts (see `insight.rs`).

use std::{
    cell::RefCell,
    cmp::{Ordering, Reverse},
};

pub(crate) mod insight;

use crate::{
    blend::{Blend, Share, Source},
    calibration::Worths,
    frontier::Frontier,
    id::Token,
    locus::{Ahead, Evidence, Locus},
    node::TOP,
    noise::Coupling,
    own::OCCURRENCES,
    sync,
    tally::Tally,
    tree::Tree,
    trust::Trust,
};
use insight::{Insight, Merge, RowContext, Sources};

/// Contexts collected per source; more gain a thousandth of the tokens, at an eighth of the time.
const CONTEXTS: usize = 3;
/// The path probability there must be left for further evidence to be heard: this divided by the nodes of the draft, and never
/// more than that.
const LEAST_HEARD: f32 = 0.4;
const MOST_UNHEARD: f32 = 0.025;
/// The least conditional probability of a draft.
const LEAST_SHARE: f32 = 0.003;

/// The form of a draft.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shape {
    /// The most probable nodes, wherever they branch.
    #[default]
    Tree,
    /// Only the most probable token after each other.
    Chain,
}

/// How much to draft.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DraftOptions {
    /// Most nodes.
    pub max_nodes: usize,
    /// Least path probability of a node.
    pub min_probability: f32,
    /// Tree or chain.
    pub shape: Shape,
    /// How the target will pick.
    pub coupling: Coupling,
}

impl Default for DraftOptions {
    fn default() -> Self {
        Self {
            max_nodes: 16,
            min_probability: 0.0,
            shape: Shape::Tree,
            coupling: Coupling::Blind,
        }
    }
}

/// Drafted tokens in best-first order: parents come before children and probabilities never rise, so that every prefix of
/// the list is the best draft of its size.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Draft {
    /// The tokens.
    pub tokens: Vec<u32>,
    /// Index of the node each one follows; -1 for those that follow the text itself.
    pub parents: Vec<i32>,
    /// Estimated probability that the token and all above it are what comes.
    pub probabilities: Vec<f32>,
}

impl Draft {
    /// Number of nodes.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there is nothing to verify.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    pub(crate) fn clear(&mut self) {
        self.tokens.clear();
        self.parents.clear();
        self.probabilities.clear();
    }
}

/// The sources, and how the own text lies in the tree.
#[derive(Clone, Copy)]
struct View<'a> {
    sources: Sources<'a>,
    /// Suffixes of the output, as the tree has it (start marker first), that begin before this offset are counted there.
    counted: usize,
    /// What each of them counts.
    weight: u64,
    /// Whether there are distributions.
    informed: bool,
}

impl View<'_> {
    /// Whether anything is learned beside counts.
    fn learns(&self) -> bool {
        self.informed || self.sources.tree.lore.shared
    }
}

/// An earlier occurrence of the request's last tokens in its own text.
#[derive(Clone, Copy, Debug)]
struct Occurrence {
    /// Position of the token that followed (and what has been drafted since), and that token.
    next: u32,
    follower: Token,
    /// How many of the last tokens agree.
    length: u32,
    /// The tree counts this occurrence too, as one of a context of more than `above` and at most `upto` tokens.
    above: u32,
    upto: u32,
}

/// A context in the history: its place in the tree, and its length at the root of the draft.
#[derive(Clone, Copy, Debug)]
struct Context {
    locus: Locus,
    length: u32,
}

/// A node of the draft that may get children: its occurrences and contexts are ranges of the scratch lists.
#[derive(Clone, Debug)]
struct Open {
    occurrences: std::ops::Range<usize>,
    contexts: std::ops::Range<usize>,
    depth: u32,
    /// The last tokens.
    last: insight::Last,
    /// What the target would likeliest have said instead of the last of them, as far as is known.
    instead: Option<Token>,
    /// The likeliest next tokens, as far as evidence tells.
    foreseen: [Option<Token>; 2],
}

/// A possible next node of the draft.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Candidate {
    probability: f32,
    /// Index in the draft of the node above, -1 for the root.
    parent: i32,
    token: Token,
    /// What evidence gave it there.
    share: Share,
}

impl Eq for Candidate {}

impl Ord for Candidate {
    /// More probable first, then the earlier parent, then the smaller token.
    fn cmp(&self, other: &Self) -> Ordering {
        let by_probability = self.probability.total_cmp(&other.probability);
        by_probability
            .then(other.parent.cmp(&self.parent))
            .then(other.token.cmp(&self.token))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Working space, kept between drafts so that drafting does not allocate.
#[derive(Default)]
struct Scratch {
    occurrences: Vec<Occurrence>,
    contexts: Vec<Context>,
    /// Lengths of the own contexts, longest first.
    lengths: Vec<u32>,
    shared_totals: Vec<i64>,
    open: Vec<Open>,
    frontier: Frontier<Candidate>,
    /// Followers of a context: in the own text, in the part of it that the tree has too, in the tree.
    own: Tally<u64>,
    shared: Tally<u64>,
    followers: Vec<(Token, u64)>,
    blend: Blend,
    /// Evidence about the node opened last, and about the first.
    evidence: insight::Evidence,
    expected: insight::Evidence,
    /// What the own text is made of, under the dice of each depth so far.
    recent: Vec<Vec<(Token, f32)>>,
    recent_depths: usize,
    /// What estimates are worth at the moment.
    worths: Worths,
}

sync::thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// How a running sequence lies in its tree.
pub(crate) struct Place {
    /// The locus of its longest suffix there.
    pub(crate) start: Locus,
    /// The offset before which all its suffixes are counted there, and what each counts.
    pub(crate) counted: usize,
    pub(crate) weight: u64,
}

/// Drafts for a running sequence, and notes what the draft expects.
pub(crate) fn running(
    sources: Sources,
    earlier: impl Iterator<Item = usize>,
    place: Place,
    options: &DraftOptions,
    draft: &mut Draft,
    insight: &mut Insight,
) {
    let Place {
        start,
        counted,
        weight,
    } = place;
    let tree = sources.tree;
    let view = View {
        counted,
        weight,
        informed: tree.lore.soft && (insight.informed || tree.text.has_known()),
        sources: Sources {
            coupling: options.coupling,
            insight: Some(insight),
            ..sources
        },
    };
    let learns = view.learns();
    SCRATCH.with(|scratch| {
        let scratch = &mut *scratch.borrow_mut();
        scratch.collect_occurrences(&view, earlier);
        scratch.grow(&view, start, options, draft);
    });
    if learns {
        SCRATCH.with(|scratch| insight.expect(&scratch.borrow().expected));
    }
}

/// Drafts from a text that is not in the tree.
pub(crate) fn stateless(tree: &Tree, text: &[Token], options: &DraftOptions) -> Draft {
    let mut draft = Draft::default();
    let last = text.split_last().filter(|_| options.max_nodes > 0);
    let Some((&last, before)) = last else {
        return draft;
    };
    let sources = Sources {
        tree,
        own: text,
        prompt: text.len(),
        id: None,
        chunks: &[],
        insight: None,
        coupling: options.coupling,
    };
    let view = View {
        sources,
        counted: 0,
        weight: 0,
        informed: tree.lore.soft && tree.text.has_known(),
    };
    let limit = context_limit(tree);
    let tail = &text[text.len().saturating_sub(limit as usize)..];
    let start = tail
        .iter()
        .fold(Locus::ROOT, |at, &token| tree.advance(at, token, limit));
    SCRATCH.with(|scratch| {
        let scratch = &mut *scratch.borrow_mut();
        let earlier = before
            .iter()
            .enumerate()
            .rev()
            .filter(|&(_, &token)| token == last)
            .map(|(at, _)| at);
        scratch.collect_occurrences(&view, earlier);
        scratch.grow(&view, start, options, &mut draft);
    });
    draft
}

/// Longest context used: half the tree's depth is left to draft in.
pub(crate) fn context_limit(tree: &Tree) -> u32 {
    tree.max_depth / 2
}

impl Scratch {
    /// Finds the occurrences of the last tokens in the own text, longest agreement first, newest first among equals.
    fn collect_occurrences(&mut self, view: &View, earlier: impl Iterator<Item = usize>) {
        let (own, limit) = (view.sources.own, context_limit(view.sources.tree));
        self.occurrences.clear();
        for at in earlier.take(OCCURRENCES) {
            let agree = |i: &u32| own[at - *i as usize] == own[own.len() - 1 - *i as usize];
            let length = (1..limit.min(at as u32 + 1)).take_while(agree).count() as u32 + 1;
            // In the tree the output is preceded by the start marker, so its token at `at` has offset `at + 1 - prompt`,
            // and a context that ends there and is counted begins after the prompt and before `counted`.
            let offset = (at + 1).saturating_sub(view.sources.prompt);
            let (above, upto) = (
                (offset + 1).saturating_sub(view.counted) as u32,
                length.min(offset as u32),
            );
            let next = at as u32 + 1;
            self.occurrences.push(Occurrence {
                next,
                follower: own[at + 1],
                length,
                above,
                upto,
            });
        }
        let order = |at: &Occurrence| Reverse((at.length, at.next));
        self.occurrences.sort_unstable_by_key(order);
        self.lengths.clear();
        for occurrence in &self.occurrences {
            if self.lengths.len() < CONTEXTS && self.lengths.last() != Some(&occurrence.length) {
                self.lengths.push(occurrence.length);
            }
        }
    }

    /// Finds the longest contexts in the tree, from `start` along suffix links, that differ in their evidence once the
    /// request's own share is taken out.
    fn collect_contexts(&mut self, view: &View, start: Locus) {
        self.contexts.clear();
        // How many own occurrences the tree counts as ones of a context, by its length: first the changes, then the sums.
        self.shared_totals.clear();
        self.shared_totals.resize(start.depth() as usize + 2, 0);
        for &Occurrence { above, upto, .. } in &self.occurrences {
            let upto = upto.min(start.depth());
            if above < upto {
                self.shared_totals[above as usize + 1] += 1;
                self.shared_totals[upto as usize + 1] -= 1;
            }
        }
        for length in 1..self.shared_totals.len() {
            self.shared_totals[length] += self.shared_totals[length - 1];
        }
        let mut last = 0;
        let mut at = Some(start);
        while let Some(locus) = at.filter(|at| at.depth() > 0 && self.contexts.len() < CONTEXTS) {
            let own = self.shared_totals[locus.depth() as usize] as u64 * view.weight;
            let total = view.sources.tree.total(&locus).saturating_sub(own);
            if total != last && total > 0 {
                let length = locus.depth();
                self.contexts.push(Context { locus, length });
                last = total;
            }
            at = view.sources.tree.suffix(&locus);
        }
    }

    /// Best-first search from the end of the text.
    fn grow(&mut self, view: &View, start: Locus, options: &DraftOptions, draft: &mut Draft) {
        draft.clear();
        self.collect_contexts(view, start);
        self.open.clear();
        self.frontier.clear(options.max_nodes);
        self.evidence.clear();
        self.expected.clear();
        self.recent_depths = 0;
        if view.learns() {
            self.worths
                .read(&view.sources.tree.lore.backoff.calibration);
        }
        let own = view.sources.own;
        let root = Open {
            occurrences: 0..self.occurrences.len(),
            contexts: 0..self.contexts.len(),
            depth: 0,
            last: insight::last_of(own),
            instead: view.sources.insight.and_then(|insight| insight.instead),
            foreseen: [None; 2],
        };
        self.open.push(root);
        self.push_children(view, -1, 1.0, options);
        std::mem::swap(&mut self.evidence, &mut self.expected);
        while let Some(best) = self.frontier.pop() {
            draft.tokens.push(best.token);
            draft.parents.push(best.parent);
            draft.probabilities.push(best.probability);
            self.expected.drafted(best.token, best.parent, best.share);
            if draft.len() == options.max_nodes {
                return;
            }
            self.step_down(view, best);
            self.push_children(view, draft.len() as i32 - 1, best.probability, options);
        }
    }

    /// Carries occurrences and contexts of a node's parent down to the node.
    fn step_down(&mut self, view: &View, node: Candidate) {
        let parent = self.open[(node.parent + 1) as usize].clone();
        let (first_occurrence, first_context) = (self.occurrences.len(), self.contexts.len());
        for i in parent.occurrences {
            let Occurrence { next, follower, .. } = self.occurrences[i];
            let after = view.sources.own.get(next as usize + 1);
            if let Some(&after) = after.filter(|_| follower == node.token) {
                self.occurrences.push(Occurrence {
                    next: next + 1,
                    follower: after,
                    ..self.occurrences[i]
                });
            }
        }
        // All look before the first one goes: so the memory of where they go is fetched at once.
        let tree = view.sources.tree;
        let mut ahead = [Ahead::Nowhere; CONTEXTS];
        let contexts = &self.contexts[parent.contexts.clone()];
        for (ahead, context) in ahead.iter_mut().zip(contexts) {
            *ahead = tree.look(&context.locus, node.token);
        }
        for (i, ahead) in parent.contexts.zip(ahead) {
            let Context { locus, length } = self.contexts[i];
            if let Some(locus) = tree.go(&locus, ahead) {
                self.contexts.push(Context { locus, length });
            }
        }
        let mut others = parent.foreseen.into_iter().flatten();
        self.open.push(Open {
            occurrences: first_occurrence..self.occurrences.len(),
            contexts: first_context..self.contexts.len(),
            depth: parent.depth + 1,
            last: [parent.last[1], parent.last[2], Some(node.token)],
            instead: others.find(|&other| other != node.token),
            foreseen: [None; 2],
        });
    }

    /// Blends at the node opened last and offers its likely children.
    fn push_children(
        &mut self,
        view: &View,
        parent: i32,
        probability: f32,
        options: &DraftOptions,
    ) {
        let least = (LEAST_HEARD / options.max_nodes as f32).min(MOST_UNHEARD);
        self.estimate(view, probability, least);
        let shares = self.blend.shares().iter();
        let likely = shares.filter(|(_, share)| share.estimate >= LEAST_SHARE);
        let worths = view.learns().then_some(&self.worths);
        let worth = |share: &Share| match worths {
            Some(worths) => worths.of(share.estimate, share.voices),
            None => share.estimate,
        };
        let children = likely.map(|&(token, share)| Candidate {
            probability: probability * worth(&share),
            parent,
            token,
            share,
        });
        let children = children.filter(|child| child.probability >= options.min_probability);
        match options.shape {
            Shape::Tree => children.for_each(|child| self.frontier.push(child)),
            Shape::Chain => children
                .max()
                .into_iter()
                .for_each(|best| self.frontier.push(best)),
        }
    }

    /// Estimates what follows the node opened last, which is reached with some probability; evidence that would have less than
    /// `least` to give is not heard.
    fn estimate(&mut self, view: &View, probability: f32, least: f32) {
        let lore = &view.sources.tree.lore;
        self.evidence.clear();
        let depth = self.open.last().expect("a node was opened").depth;
        // Of the first node all is heard, to learn from it; below, only what may still matter.
        let matters = |left: f32| depth == 0 || probability * left >= least;
        let rows = self.rows(view);
        self.fetch_evidence(view, if matters(1.0) { &rows } else { &[] });
        if view.informed {
            self.blend.clear(view.sources.tree.unit());
            self.ask(view);
        } else {
            self.mix(view);
            if !lore.shared {
                return;
            }
            self.evidence
                .counted(self.blend.shares(), self.blend.left());
        }
        let trust = &lore.backoff.trust;
        let mut blended = self.blend_evidence(trust, 0);
        let node = self.open.last_mut().expect("a node was opened");
        node.foreseen = self.evidence.foreseen();
        for context in rows.into_iter().flatten() {
            if !matters(self.blend.left()) {
                break;
            }
            self.evidence.add_row(&view.sources, context, depth);
            blended = self.blend_evidence(trust, blended);
        }
        if view.informed && matters(self.blend.left()) {
            let (recent, depths) = (&mut self.recent, &mut self.recent_depths);
            self.evidence
                .add_recent(&view.sources, depth, recent, depths);
            self.blend_evidence(trust, blended);
        }
    }

    /// The rows that tell of the node opened last, in the order they are asked.
    fn rows(&self, view: &View) -> [Option<RowContext>; 6] {
        let lore = &view.sources.tree.lore;
        let &Open { last, instead, .. } = self.open.last().expect("a node was opened");
        let [longer, shorter] = match view.informed && lore.rejected {
            true => insight::rejected_contexts(lore.problem, last),
            false => [None; 2],
        };
        let beside = insight::beside_context(lore, last[2], instead).filter(|_| view.informed);
        let [apart, pair, single] = match lore.shared {
            true => insight::shared_contexts(last),
            false => [None; 3],
        };
        [longer, shorter, beside, apart, pair, single]
    }

    /// Asks for the memory of the evidence about the node opened last, all of it at once: to wait for one piece after the other
    /// would take longer than all else.
    fn fetch_evidence(&self, view: &View, rows: &[Option<RowContext>]) {
        let (tree, backoff) = (view.sources.tree, &view.sources.tree.lore.backoff);
        let keys = || rows.iter().flatten().map(|&(key, ..)| key);
        keys().for_each(|key| backoff.fetch_slot(key));
        if !view.informed {
            let node = self.open.last().expect("a node was opened");
            let contexts = self.contexts[node.contexts.clone()].iter();
            contexts.for_each(|context| tree.fetch_followers(&context.locus));
        }
        keys().for_each(|key| backoff.fetch(key));
    }

    /// Blends the evidence from a level on; returns how many levels there are.
    fn blend_evidence(&mut self, trust: &Trust, from: usize) -> usize {
        for (cell, votes) in self.evidence.levels().skip(from) {
            if self.blend.is_open() {
                self.blend.add_votes(trust.part(cell), votes);
            }
        }
        self.evidence.len()
    }

    /// Collects what the target knew after the longest contexts of the node opened last.
    fn ask(&mut self, view: &View) {
        let node = self.open.last().expect("a node was opened").clone();
        let mut merge = Merge::new(view.sources, node.depth, &mut self.evidence);
        let (mut occurrence, mut context) = (node.occurrences.start, node.contexts.start);
        let mut newest = 0;
        let end = node.occurrences.end;
        loop {
            let own = self.occurrences[..end].get(occurrence);
            let own = own
                .filter(|_| merge.wants_own())
                .map_or(0, |own| own.length);
            let history = self.contexts[..node.contexts.end].get(context);
            let history = history
                .filter(|_| merge.wants_history())
                .map_or(0, |at| at.length);
            if own == 0 && history == 0 {
                break;
            }
            if own >= history {
                while occurrence < end && self.occurrences[occurrence].length == own {
                    newest = newest.max(self.occurrences[occurrence].next);
                    occurrence += 1;
                }
                let times = (occurrence - node.occurrences.start) as u64;
                merge.add_own(own + node.depth, times, newest as usize);
            } else {
                let at = self.contexts[context];
                context += 1;
                let shared = self.occurrences[node.occurrences.clone()].iter();
                let shared = shared
                    .filter(|occurrence| is_shared(occurrence, &at))
                    .count() as u64;
                merge.add_history(&at.locus, at.length + node.depth, shared * view.weight);
            }
        }
        // Contexts that begin with what has been drafted did not come down from the root.
        if let ([.., Some(last)], true) = (node.last, node.depth > 0 && merge.wants_history())
            && let Some(at) = view.sources.tree.step(&Locus::ROOT, last)
        {
            merge.add_history(&at, 1, 0);
        }
    }

    /// Blends the contexts of the node opened last, longest first, own text first at equal length.
    fn mix(&mut self, view: &View) {
        let node = self.open.last().expect("a node was opened").clone();
        self.blend.clear(view.sources.tree.unit());
        self.own.clear();
        let mut latest = (0, 0);
        let mut lengths = 0..self.lengths.len();
        let mut occurrences = node.occurrences.clone();
        // Contexts that repeat a longer one do so in the whole subtree: they are dropped by moving the others up.
        let (mut context, mut kept) = (node.contexts.start, node.contexts.start);
        while self.blend.is_open() {
            let own_length = self.lengths.get(lengths.start).copied().unwrap_or(0);
            let history_length = self
                .contexts
                .get(context)
                .map_or(0, |context| context.length);
            if own_length == 0 && history_length == 0 {
                break;
            }
            if own_length >= history_length {
                lengths.next();
                while let Some(&Occurrence { next, follower, .. }) = self.occurrences
                    [..occurrences.end]
                    .get(occurrences.start)
                    .filter(|occurrence| occurrence.length >= own_length)
                {
                    *self.own.entry(follower) += 1;
                    latest = latest.max((next, follower));
                    occurrences.next();
                }
                let total = (occurrences.start - node.occurrences.start) as u64;
                if !self.blend.repeats(Source::Own, total) {
                    self.add_own(own_length + node.depth, total, latest.1);
                }
            } else {
                let at = self.contexts[context];
                context += 1;
                if !self.add_history(view, &node, &at) {
                    continue;
                }
                self.contexts[kept] = at;
                kept += 1;
            }
        }
        self.contexts.drain(kept..context);
        self.open.last_mut().expect("as above").contexts.end = self.contexts.len();
    }

    /// Mixes in what followed a context in the own text, as tallied in `self.own`.
    fn add_own(&mut self, length: u32, total: u64, latest: Token) {
        let distinct = self.own.entries().len() as u32;
        self.followers.clear();
        self.followers.extend_from_slice(self.own.entries());
        if self.followers.len() > TOP {
            let order = |&(token, count): &(Token, u64)| (Reverse(count), token);
            self.followers.select_nth_unstable_by_key(TOP, order);
            self.followers.truncate(TOP);
        }
        let evidence = Evidence { total, distinct };
        let latest = Some(latest);
        self.blend
            .add(Source::Own, length, evidence, &self.followers, latest);
    }

    /// Mixes in what followed a context in the other rollouts: the tree's counts less the request's own. Returns whether
    /// that was anything that a longer context had not said.
    fn add_history(&mut self, view: &View, node: &Open, context: &Context) -> bool {
        let mut evidence = view
            .sources
            .tree
            .followers(&context.locus, &mut self.followers);
        self.shared.clear();
        for occurrence in &self.occurrences[node.occurrences.clone()] {
            if is_shared(occurrence, context) {
                *self.shared.entry(occurrence.follower) += view.weight;
            }
        }
        for &(token, own) in self.shared.entries() {
            let listed = self
                .followers
                .iter()
                .position(|&(follower, _)| follower == token);
            let count = match listed {
                Some(place) => self.followers[place].1,
                None => view.sources.tree.follower_count(&context.locus, token),
            };
            evidence.total = evidence.total.saturating_sub(own.min(count));
            if count <= own {
                evidence.distinct = evidence.distinct.saturating_sub(1);
            }
            match listed {
                Some(place) if count <= own => drop(self.followers.swap_remove(place)),
                Some(place) => self.followers[place].1 -= own,
                None => {}
            }
        }
        if evidence.total == 0 || self.blend.repeats(Source::History, evidence.total) {
            return false;
        }
        let length = context.length + node.depth;
        self.blend
            .add(Source::History, length, evidence, &self.followers, None);
        true
    }
}

/// Whether the tree counts an own occurrence as one of this context.
fn is_shared(occurrence: &Occurrence, context: &Context) -> bool {
    occurrence.above < context.length && context.length <= occurrence.upto
}
