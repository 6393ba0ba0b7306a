//! What the tree should say, computed the slow way: sequences as plain vectors, counts by comparing everything with
//! everything, and the drafting rule written down a second time over such counts.

use std::{cmp::Reverse, collections::BTreeMap};

pub const START: u32 = 1 << 31;

/// A sequence: its prompt, its output with the start marker before it, and the marker after it once it is closed.
#[derive(Clone, Debug)]
pub struct Text {
    pub prompt: Vec<u32>,
    pub symbols: Vec<u32>,
    pub closed: bool,
    /// When the last symbol was appended.
    pub touched: usize,
    /// What each occurrence in it counts.
    pub weight: u64,
}

#[derive(Clone, Debug)]
pub struct Oracle {
    pub max_depth: usize,
    pub texts: Vec<Text>,
    /// What an occurrence of weight 1 counts.
    pub unit: u64,
    clock: usize,
}

type Counts = BTreeMap<u32, u64>;

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
            touched: 0,
            weight,
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
        let known = |length: usize| {
            let suffix = &own.symbols[own.symbols.len() - length..];
            self.texts.iter().any(|text| {
                let ends = |at: usize| at + length == text.symbols.len();
                let counts = |at: usize| !ends(at) || text.touched < own.touched;
                text.symbols
                    .windows(length)
                    .enumerate()
                    .any(|(at, window)| window == suffix && counts(at))
            })
        };
        (1..self.max_depth.min(own.symbols.len() + 1))
            .take_while(|&length| known(length))
            .count()
    }

    /// Weight of the occurrences of a string that start in a counted suffix.
    pub fn count(&self, string: &[u32]) -> u64 {
        (0..self.texts.len())
            .map(|id| self.count_in(id, string))
            .sum()
    }

    fn count_in(&self, id: usize, string: &[u32]) -> u64 {
        let symbols = &self.texts[id].symbols;
        let counted = symbols.len() - self.active(id);
        let found = symbols
            .windows(string.len())
            .take(counted)
            .filter(|window| *window == string);
        found.count() as u64 * self.texts[id].weight
    }

    /// The draft for a running text.
    pub fn draft(&self, id: usize, max_nodes: usize, floor: f32, chain: bool) -> Nodes {
        let text = &self.texts[id];
        let own = [text.prompt.as_slice(), &text.symbols[1..]].concat();
        let tail = &text.symbols[text.symbols.len() - self.active(id)..];
        Request::new(self, own, tail, Some(id)).draft(max_nodes, floor, chain)
    }

    /// The draft for a text that is not in the tree.
    pub fn stateless(&self, text: &[u32], max_nodes: usize) -> Nodes {
        Request::new(self, text.to_vec(), text, None).draft(max_nodes, 0.0, false)
    }
}

/// Token, parent, path probability of each node of a draft.
pub type Nodes = Vec<(u32, i32, f32)>;

/// Someone who wants a draft.
struct Request<'a> {
    oracle: &'a Oracle,
    /// Prompt and output.
    own: Vec<u32>,
    /// What the tree knows of the end of the output.
    tail: Vec<u32>,
    /// The text in the tree that is the request's own, and the length of the prompt before it.
    id: Option<usize>,
    /// Lengths of the texts' open suffixes.
    active: Vec<usize>,
    /// Own occurrences of the last token before this position count as history: 64 are looked at.
    oldest: usize,
}

impl<'a> Request<'a> {
    fn new(oracle: &'a Oracle, own: Vec<u32>, tail: &[u32], id: Option<usize>) -> Self {
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

    /// What followed a context and then a path in the counted suffixes of the other texts.
    fn history(&self, length: usize, path: &[u32]) -> Counts {
        let string = [&self.tail[self.tail.len() - length..], path].concat();
        let mut counts = Counts::new();
        for (id, text) in self.oracle.texts.iter().enumerate() {
            let counted = text.symbols.len() - self.active[id];
            let windows = text.symbols.windows(string.len() + 1);
            for (at, window) in windows.enumerate().take(counted) {
                // The start marker is not in the own text.
                let own = self.id == Some(id) && text.prompt.len() + at + length > self.oldest + 1;
                if window[..string.len()] == string && !own {
                    *counts.entry(window[string.len()]).or_default() += text.weight;
                }
            }
        }
        counts
    }

    /// Lengths at which the evidence changes, longest first, at most six.
    fn lengths(&self, known: usize, followers: impl Fn(usize) -> Counts) -> Vec<usize> {
        let mut last = 0;
        let longest = known.min(self.oracle.max_depth / 2);
        let changes = (1..=longest).rev().filter(|&length| {
            let total = followers(length).values().sum();
            // Open suffixes may leave a shorter context without counted occurrences: it says nothing, of itself or others.
            total != 0 && std::mem::replace(&mut last, total) != total
        });
        changes.take(6).collect()
    }

    fn draft(&self, max_nodes: usize, floor: f32, chain: bool) -> Nodes {
        let own_lengths = self.lengths(self.own.len(), |length| self.own_followers(length, &[]).0);
        let history_lengths = self.lengths(self.tail.len(), |length| self.history(length, &[]));
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
            let levels = self.levels(&path, &own_lengths, inherited);
            let (shares, repeats) = blend(&levels, self.oracle.unit);
            let kept = |length: &&usize| !repeats.contains(&(**length + path.len()));
            lengths.push(inherited.iter().filter(kept).copied().collect());
            let mut children: Vec<(f32, i32, u32)> = shares
                .into_iter()
                .filter(|&(_, share)| share >= 0.003)
                .map(|(token, share)| (reached * share, parent, token))
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

    /// The contexts at a node, longest first, own before history.
    fn levels(&self, path: &[u32], own: &[usize], history: &[usize]) -> Vec<Level> {
        let mut levels = Vec::new();
        for context in (1..=self.oracle.max_depth).rev() {
            let length = context + path.len();
            if own.contains(&context) {
                let (counts, latest) = self.own_followers(context, path);
                levels.push(Level {
                    own: true,
                    length,
                    counts,
                    latest,
                });
            }
            if history.contains(&context) && length < self.oracle.max_depth {
                let (counts, latest) = (self.history(context, path), None);
                levels.push(Level {
                    own: false,
                    length,
                    counts,
                    latest,
                });
            }
        }
        levels
    }
}

struct Level {
    own: bool,
    length: usize,
    counts: Counts,
    latest: Option<u32>,
}

/// The published rule: stick-breaking over the levels, four of each source with different totals. Also returns the lengths
/// of the history contexts that repeat a longer one.
fn blend(levels: &[Level], unit: u64) -> (Counts32, Vec<usize>) {
    let mut shares = Counts32::new();
    let mut repeats = Vec::new();
    let mut mass = 1.0f32;
    let (mut used, mut last) = ([0, 0], [0, 0]);
    for level in levels {
        if mass <= 0.01 {
            break;
        }
        let source = usize::from(level.own);
        let total: u64 = level.counts.values().sum();
        if used[source] == 4 {
            continue;
        }
        if total == 0 || total == last[source] {
            repeats.extend((!level.own).then_some(level.length));
            continue;
        }
        last[source] = total;
        used[source] += 1;
        let mut followers: Vec<(Reverse<u64>, u32)> = level
            .counts
            .iter()
            .map(|(&token, &count)| (Reverse(count), token))
            .collect();
        followers.sort_unstable();
        followers.truncate(8);
        let most = followers[0].0.0;
        let dominant = most as f32 / total as f32 > 0.6;
        if level.own && level.counts.len() > 1 {
            let weight = if dominant { 0.22 } else { 0.12 };
            *shares.entry(level.latest.unwrap()).or_default() += mass * weight;
            mass *= 1.0 - weight;
        }
        let unit = if level.own { 1 } else { unit };
        let occurrences = ((total + unit / 2) / unit).max(1);
        let weight = weight(
            level.own,
            level.length,
            occurrences,
            level.counts.len(),
            dominant,
        );
        for (Reverse(count), token) in followers {
            if token < START {
                *shares.entry(token).or_default() += mass * (weight * count as f32 / total as f32);
            }
        }
        mass *= 1.0 - weight;
    }
    (shares, repeats)
}

type Counts32 = BTreeMap<u32, f32>;

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
