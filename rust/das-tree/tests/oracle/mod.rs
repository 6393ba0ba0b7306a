//! What the tree should say, computed the slow way: sequences as plain vectors, counts by comparing everything with
//! everything, and the drafting rule written down a second time over such counts.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use das_tree::Draft;

pub const START: u32 = 1 << 31;

/// A sequence: its prompt, its output with the start marker before it, and the marker after it once it is closed.
#[derive(Clone, Debug)]
pub struct Text {
    pub prompt: Vec<u32>,
    pub symbols: Vec<u32>,
    pub closed: bool,
    /// What each occurrence in it counts.
    pub weight: u64,
    /// When the last symbol was appended.
    pub touched: usize,
}

#[derive(Clone, Debug)]
pub struct Oracle {
    pub max_depth: usize,
    pub texts: Vec<Text>,
    /// What an occurrence of full weight counts.
    pub unit: u64,
    clock: usize,
}

pub type Counts = BTreeMap<u32, u64>;

impl Oracle {
    pub fn new(max_depth: usize) -> Self {
        Self {
            max_depth,
            texts: Vec::new(),
            unit: 1,
            clock: 0,
        }
    }

    pub fn open(&mut self, prompt: &[u32]) {
        self.open_weighted(prompt, self.unit);
    }

    pub fn open_weighted(&mut self, prompt: &[u32], weight: u64) {
        self.texts.push(Text {
            prompt: prompt.to_vec(),
            symbols: Vec::new(),
            closed: false,
            weight,
            touched: 0,
        });
        self.append(self.texts.len() - 1, &[START]);
    }

    pub fn append(&mut self, id: usize, symbols: &[u32]) {
        self.clock += usize::from(!symbols.is_empty());
        self.texts[id].symbols.extend_from_slice(symbols);
        if !symbols.is_empty() {
            self.texts[id].touched = self.clock;
        }
    }

    pub fn close(&mut self, id: usize) {
        self.append(id, &[START + 1 + id as u32]);
        self.texts[id].closed = true;
    }

    /// Longest suffix of a text, shorter than the cap, that the tree knows from elsewhere: that occurs with something
    /// after it, or at the end of a text that got there first.
    pub fn active(&self, id: usize) -> usize {
        let own = &self.texts[id];
        let limit = self.max_depth - 1;
        let longest_in = |text: &Text| {
            let last = text.symbols.len() - usize::from(text.touched >= own.touched);
            let agreeing = |end: usize| {
                let pairs = own
                    .symbols
                    .iter()
                    .rev()
                    .zip(text.symbols[..end].iter().rev());
                pairs.take(limit).take_while(|(a, b)| a == b).count()
            };
            (1..=last).map(agreeing).max().unwrap_or(0)
        };
        self.texts.iter().map(longest_in).max().unwrap_or(0)
    }

    /// Weight of the occurrences of a string that start in a counted suffix.
    pub fn count(&self, string: &[u32]) -> u64 {
        let weights = self.texts.iter().enumerate().map(|(id, text)| {
            let counted = text.symbols.len() - self.active(id);
            let windows = text.symbols.windows(string.len()).take(counted);
            text.weight * windows.filter(|&window| window == string).count() as u64
        });
        weights.sum()
    }

    /// The draft for a running text.
    pub fn draft(&self, id: usize, max_nodes: usize, floor: f32, chain: bool) -> Nodes {
        let text = &self.texts[id];
        let own = [text.prompt.as_slice(), &text.symbols[1..]].concat();
        let tail = &text.symbols[text.symbols.len() - self.active(id)..];
        Request::new(self, own, tail, Some(id)).draft(max_nodes, floor, chain)
    }

    /// The draft for a text that is not in the tree.
    pub fn stateless(&self, text: &[u32], max_nodes: usize, floor: f32, chain: bool) -> Nodes {
        Request::new(self, text.to_vec(), text, None).draft(max_nodes, floor, chain)
    }
}

/// Token, parent, path probability of each node of a draft.
pub type Nodes = Vec<(u32, i32, f32)>;

/// Someone who wants a draft.
pub struct Request<'a> {
    oracle: &'a Oracle,
    /// Prompt and output.
    pub own: Vec<u32>,
    /// What the tree knows of the end of the output.
    pub tail: Vec<u32>,
    /// The text in the tree that is the request's own, and the length of the prompt before it.
    id: Option<usize>,
    /// Lengths of the texts' open suffixes.
    active: Vec<usize>,
    /// Own occurrences of the last token before this position count as history: 64 are looked at.
    pub oldest: usize,
}

impl<'a> Request<'a> {
    pub fn new(oracle: &'a Oracle, own: Vec<u32>, tail: &[u32], id: Option<usize>) -> Self {
        let active = (0..oracle.texts.len())
            .map(|id| oracle.active(id))
            .collect();
        let last = own.len().saturating_sub(1);
        let earlier = (0..last).rev().filter(|&at| own[at] == own[last]);
        let oldest = earlier.take(64).last().unwrap_or(last);
        let tail = tail.to_vec();
        Self {
            oracle,
            own,
            tail,
            id,
            active,
            oldest,
        }
    }

    /// What followed a context and then a path in the own text, and what did so last.
    fn own_followers(&self, length: usize, path: &[u32]) -> (Counts, Option<u32>) {
        let string = [&self.own[self.own.len() - length..], path].concat();
        let (mut counts, mut latest) = (Counts::new(), None);
        for (at, window) in self.own.windows(string.len() + 1).enumerate() {
            if window[..string.len()] == string && at + length > self.oldest {
                *counts.entry(window[string.len()]).or_default() += 1;
                latest = Some(window[string.len()]);
            }
        }
        (counts, latest)
    }

    /// What followed a context and then a path in the counted suffixes of all texts, and what of that is the own text's.
    pub fn history(&self, length: usize, path: &[u32]) -> (Counts, Counts) {
        let string = [&self.tail[self.tail.len() - length..], path].concat();
        let (mut all, mut own) = (Counts::new(), Counts::new());
        for (id, text) in self.oracle.texts.iter().enumerate() {
            let counted = text.symbols.len() - self.active[id];
            let windows = text.symbols.windows(string.len() + 1);
            for (at, window) in windows.enumerate().take(counted) {
                if window[..string.len()] != string {
                    continue;
                }
                let follower = window[string.len()];
                *all.entry(follower).or_default() += text.weight;
                // The start marker is not in the own text.
                if self.id == Some(id) && text.prompt.len() + at + length > self.oldest + 1 {
                    *own.entry(follower).or_default() += text.weight;
                }
            }
        }
        (all, own)
    }

    /// Lengths of the contexts in the own text and in the history.
    pub fn contexts(&self) -> [Vec<usize>; 2] {
        let own = self.lengths(self.own.len(), |length| {
            sum(&self.own_followers(length, &[]).0)
        });
        let history = self.lengths(self.tail.len(), |length| {
            let (all, own) = self.history(length, &[]);
            sum(&all) - sum(&own)
        });
        [own, history]
    }

    /// Lengths at which the evidence changes, longest first, at most three.
    fn lengths(&self, known: usize, total: impl Fn(usize) -> u64) -> Vec<usize> {
        let mut last = 0;
        let longest = known.min(self.oracle.max_depth / 2);
        let changes = (1..=longest).rev().filter(|&length| {
            let total = total(length);
            // Open suffixes may leave a shorter context without counted occurrences: it says nothing, of itself or others.
            total != 0 && std::mem::replace(&mut last, total) != total
        });
        changes.take(3).collect()
    }

    fn draft(&self, max_nodes: usize, floor: f32, chain: bool) -> Nodes {
        let [own_lengths, history_lengths] = self.contexts();
        let mut draft = Nodes::new();
        let mut waiting: Vec<(f32, i32, u32)> = Vec::new();
        // Per node the history contexts that are still of use below it.
        let mut lengths: Vec<Vec<usize>> = Vec::new();
        let (mut parent, mut reached, mut path) = (-1, 1.0, Vec::new());
        loop {
            let inherited = match parent {
                -1 => &history_lengths,
                _ => &lengths[(1 + draft[parent as usize].1) as usize],
            };
            let (blended, kept) = self.blend(&path, &own_lengths, inherited);
            lengths.push(kept);
            let mut children: Vec<(f32, i32, u32)> = blended
                .shares
                .into_iter()
                .filter(|&(_, (share, _))| share >= 0.003)
                .map(|(token, (share, _))| (reached * share, parent, token))
                .filter(|&(probability, _, _)| probability >= floor)
                .collect();
            let order = |a: &(f32, i32, u32), b: &(f32, i32, u32)| {
                b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2)))
            };
            children.sort_by(order);
            children.truncate(if chain { 1 } else { usize::MAX });
            waiting.extend(children);
            waiting.sort_by(order);
            if waiting.is_empty() || draft.len() == max_nodes {
                return draft;
            }
            let (probability, above, token) = waiting.remove(0);
            draft.push((token, above, probability));
            (parent, reached) = (draft.len() as i32 - 1, probability);
            path = Vec::new();
            let mut node = parent;
            while node >= 0 {
                path.insert(0, draft[node as usize].0);
                node = draft[node as usize].1;
            }
        }
    }

    /// What contexts of these lengths say at a node, and those of the history that are still of use below it.
    pub fn blend(&self, path: &[u32], own: &[usize], history: &[usize]) -> (Blended, Vec<usize>) {
        let levels = self.levels(path, own, history);
        let (blended, repeats) = blend(&levels, self.oracle.unit);
        let kept = |length: &&usize| !repeats.contains(&(**length + path.len()));
        (blended, history.iter().filter(kept).copied().collect())
    }

    /// The contexts at a node, longest first, own before history.
    fn levels(&self, path: &[u32], own: &[usize], history: &[usize]) -> Vec<Level> {
        let mut levels = Vec::new();
        for context in (1..=self.oracle.max_depth).rev() {
            let length = context + path.len();
            if own.contains(&context) {
                let (counts, latest) = self.own_followers(context, path);
                levels.push(Level::new(length, &counts, None, latest));
            }
            if history.contains(&context) && length < self.oracle.max_depth {
                let (all, own) = self.history(context, path);
                levels.push(Level::new(length, &all, Some(&own), None));
            }
        }
        levels
    }
}

/// What one context says.
struct Level {
    own: bool,
    length: usize,
    total: u64,
    distinct: usize,
    /// The eight most frequent followers, ties to the smaller token.
    followers: Vec<(u32, u64)>,
    latest: Option<u32>,
}

impl Level {
    /// `less` is what is to be taken out of the counts of a history context: it is so after the eight were chosen.
    fn new(length: usize, counts: &Counts, less: Option<&Counts>, latest: Option<u32>) -> Self {
        let taken = |token: &u32| less.and_then(|less| less.get(token)).copied().unwrap_or(0);
        let mut followers: Vec<(u32, u64)> = counts.iter().map(|(&t, &n)| (t, n)).collect();
        followers.sort_by_key(|&(token, count)| (Reverse(count), token));
        followers.truncate(8);
        for (token, count) in &mut followers {
            *count -= taken(token);
        }
        followers.retain(|&(_, count)| count > 0);
        Self {
            own: less.is_none(),
            length,
            total: sum(counts) - less.map_or(0, sum),
            distinct: counts.iter().filter(|&(t, &n)| n > taken(t)).count(),
            followers,
            latest,
        }
    }
}

pub fn sum(counts: &Counts) -> u64 {
    counts.values().sum()
}

/// A sum of weights as a number of full occurrences.
pub fn in_units(total: u64, unit: u64) -> u64 {
    ((total + unit / 2) / unit).max(1)
}

/// The published rule: stick-breaking over the levels, those of each source with different totals. Also returns the lengths
/// of the history contexts that repeat a longer one.
fn blend(levels: &[Level], unit: u64) -> (Blended, Vec<usize>) {
    let mut shares = BTreeMap::<u32, (f32, u32)>::new();
    let mut repeats = Vec::new();
    let mut mass = 1.0f32;
    let mut last = [0, 0];
    for level in levels {
        if mass <= 0.01 {
            break;
        }
        let source = usize::from(level.own);
        let &Level {
            own,
            length,
            total,
            distinct,
            ..
        } = level;
        if total == 0 || total == last[source] {
            repeats.extend((!own).then_some(length));
            continue;
        }
        last[source] = total;
        let most = level.followers.iter().map(|&(_, count)| count).max();
        let dominant = most.unwrap_or(0) as f32 > 0.6 * total as f32;
        if own && distinct > 1 {
            let weight = if dominant { 0.22 } else { 0.12 };
            shares.entry(level.latest.unwrap()).or_default().0 += mass * weight;
            mass *= 1.0 - weight;
        }
        let occurrences = in_units(total, if own { 1 } else { unit });
        let weight = weight(own, length, occurrences, distinct, dominant);
        for &(token, count) in &level.followers {
            if token < START {
                let share = shares.entry(token).or_default();
                share.0 += mass * (weight * count as f32 / total as f32);
                share.1 += u32::from(count as f32 / total as f32 >= 0.05);
            }
        }
        mass *= 1.0 - weight;
    }
    (Blended { shares, left: mass }, repeats)
}

/// Estimated probability of each next token and the contexts that named it, and what is left.
pub struct Blended {
    pub shares: BTreeMap<u32, (f32, u32)>,
    pub left: f32,
}

fn weight(own: bool, length: usize, total: u64, distinct: usize, dominant: bool) -> f32 {
    if distinct == 1 {
        let base = match (own, total) {
            (true, 1) => 0.25,
            (true, 2) => 0.48,
            (true, 3..=4) => 0.57,
            (false, 1) => 0.20,
            (false, 2) => 0.33,
            (false, 3..=4) => 0.40,
            _ => 0.65,
        };
        let floor = if length >= 17 {
            0.58
        } else if length >= 9 {
            0.38
        } else {
            0.0
        };
        return f32::max(base, floor);
    }
    match (own, length == 1, dominant, total >= 5) {
        (true, _, true, _) => 0.25,
        (true, true, false, true) => 0.40,
        (true, _, false, _) => 0.18,
        (false, true, _, many) => {
            if many {
                0.80
            } else {
                0.50
            }
        }
        (false, false, true, many) => {
            if many {
                0.42
            } else {
                0.25
            }
        }
        (false, false, false, many) => {
            if many {
                0.30
            } else {
                0.17
            }
        }
    }
}

/// Checks that a draft is the expected one up to rounding: where two candidates tie within it, their order may differ, so
/// this compares what the tie allows.
pub fn assert_same(draft: &Draft, expected: &Nodes) {
    let got: Nodes = (0..draft.len())
        .map(|i| (draft.tokens[i], draft.parents[i], draft.probabilities[i]))
        .collect();
    assert_eq!(got.len(), expected.len(), "{got:?}\n{expected:?}");
    for (a, b) in got.iter().zip(expected) {
        assert!((a.2 - b.2).abs() < 1e-5, "{got:?}\n{expected:?}");
    }
    let last = expected.last().map_or(0.0, |node| node.2);
    assert_eq!(
        paths_above(&got, last + 1e-5),
        paths_above(expected, last + 1e-5),
        "{got:?}\n{expected:?}"
    );
}

/// The strings that the nodes of a draft stand for, of those more probable than `floor`.
fn paths_above(nodes: &Nodes, floor: f32) -> BTreeSet<Vec<u32>> {
    let mut paths: Vec<Vec<u32>> = Vec::new();
    for &(token, parent, _) in nodes {
        let mut path = match usize::try_from(parent) {
            Ok(parent) => paths[parent].clone(),
            Err(_) => Vec::new(),
        };
        path.push(token);
        paths.push(path);
    }
    let probable = paths
        .into_iter()
        .zip(nodes)
        .filter(|(_, node)| node.2 > floor);
    probable.map(|(path, _)| path).collect()
}
