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
}

#[derive(Clone, Debug)]
pub struct Oracle {
    pub max_depth: usize,
    pub texts: Vec<Text>,
    clock: usize,
}

type Counts = BTreeMap<u32, u32>;

impl Oracle {
    pub fn new(max_depth: usize) -> Self {
        Self {
            max_depth,
            texts: Vec::new(),
            clock: 0,
        }
    }

    pub fn open(&mut self, prompt: &[u32]) {
        self.texts.push(Text {
            prompt: prompt.to_vec(),
            symbols: Vec::new(),
            closed: false,
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

    /// Occurrences of a string that start in a counted suffix.
    pub fn count(&self, string: &[u32]) -> u32 {
        (0..self.texts.len())
            .map(|id| self.count_in(id, string))
            .sum()
    }

    fn count_in(&self, id: usize, string: &[u32]) -> u32 {
        let symbols = &self.texts[id].symbols;
        let counted = symbols.len() - self.active(id);
        symbols
            .windows(string.len())
            .take(counted)
            .filter(|window| *window == string)
            .count() as u32
    }

    /// What followed a string in the counted suffixes of all texts but `except`.
    fn history(&self, string: &[u32], except: Option<usize>, active: &[usize]) -> Counts {
        let mut counts = Counts::new();
        for (id, text) in self
            .texts
            .iter()
            .enumerate()
            .filter(|&(id, _)| Some(id) != except)
        {
            let counted = text.symbols.len() - active[id];
            for window in text.symbols.windows(string.len() + 1).take(counted) {
                if &window[..string.len()] == string {
                    *counts.entry(window[string.len()]).or_default() += 1;
                }
            }
        }
        counts
    }

    /// The draft for a running text.
    pub fn draft(
        &self,
        id: usize,
        max_nodes: usize,
        floor: f32,
        chain: bool,
    ) -> Vec<(u32, i32, f32)> {
        let text = &self.texts[id];
        let own = [text.prompt.as_slice(), &text.symbols[1..]].concat();
        let active: Vec<usize> = (0..self.texts.len()).map(|id| self.active(id)).collect();
        let tail = &text.symbols[text.symbols.len() - active[id]..];
        self.grow(&own, tail, Some(id), &active, max_nodes, floor, chain)
    }

    /// The draft for a text that is not in the tree.
    pub fn stateless(&self, text: &[u32], max_nodes: usize) -> Vec<(u32, i32, f32)> {
        let active: Vec<usize> = (0..self.texts.len()).map(|id| self.active(id)).collect();
        self.grow(text, text, None, &active, max_nodes, 0.0, false)
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "one caller each, and clearer than a struct"
    )]
    fn grow(
        &self,
        own: &[u32],
        tail: &[u32],
        except: Option<usize>,
        active: &[usize],
        max_nodes: usize,
        floor: f32,
        chain: bool,
    ) -> Vec<(u32, i32, f32)> {
        let limit = self.max_depth / 2;
        // Contexts at the root: lengths at which the evidence changes, longest first, six of each source.
        let mut own_lengths = Vec::new();
        let mut last = 0;
        for length in (1..=limit.min(own.len())).rev() {
            let total: u32 = own_followers(own, &own[own.len() - length..])
                .0
                .values()
                .sum();
            if total != last && own_lengths.len() < 6 {
                own_lengths.push(length);
                last = total;
            }
        }
        let mut history_lengths = Vec::new();
        last = 0;
        for length in (1..=limit.min(tail.len())).rev() {
            let total: u32 = self
                .history(&tail[tail.len() - length..], except, active)
                .values()
                .sum();
            if total > 0 && total != last && history_lengths.len() < 6 {
                history_lengths.push(length);
                last = total;
            }
        }
        let mut draft: Vec<(u32, i32, f32)> = Vec::new();
        let mut waiting: Vec<(f32, i32, u32)> = Vec::new();
        let mut path: Vec<u32> = Vec::new();
        let (mut parent, mut reached) = (-1, 1.0);
        loop {
            let levels = self.levels(
                own,
                tail,
                &path,
                &own_lengths,
                &history_lengths,
                except,
                active,
            );
            let mut children: Vec<(f32, i32, u32)> = blend(&levels)
                .into_iter()
                .filter(|&(_, share)| share >= 0.003)
                .map(|(token, share)| (reached * share, parent, token))
                .filter(|&(probability, _, _)| probability >= floor)
                .collect();
            children.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.2.cmp(&b.2)));
            if chain {
                children.truncate(1);
            }
            waiting.extend(children);
            waiting.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)).then(a.2.cmp(&b.2)));
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
    #[expect(clippy::too_many_arguments, reason = "as above")]
    fn levels(
        &self,
        own: &[u32],
        tail: &[u32],
        path: &[u32],
        own_lengths: &[usize],
        history_lengths: &[usize],
        except: Option<usize>,
        active: &[usize],
    ) -> Vec<Level> {
        let mut levels = Vec::new();
        for length in (1..=self.max_depth).rev() {
            let string = |text: &[u32]| [&text[text.len() - length..], path].concat();
            if own_lengths.contains(&length) {
                let (counts, latest) = own_followers(own, &string(own));
                levels.push(Level {
                    own: true,
                    length: length + path.len(),
                    counts,
                    latest,
                });
            }
            if history_lengths.contains(&length) && length + path.len() < self.max_depth {
                let counts = self.history(&string(tail), except, active);
                levels.push(Level {
                    own: false,
                    length: length + path.len(),
                    counts,
                    latest: None,
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

/// What followed a string in the own text, and what did so last. At most the 256 latest occurrences of its end count, but
/// no test text is that long.
fn own_followers(own: &[u32], string: &[u32]) -> (Counts, Option<u32>) {
    let mut counts = Counts::new();
    let mut latest = None;
    for window in own
        .windows(string.len() + 1)
        .filter(|window| &window[..string.len()] == string)
    {
        *counts.entry(window[string.len()]).or_default() += 1;
        latest = Some(window[string.len()]);
    }
    (counts, latest)
}

/// The published rule: stick-breaking over the levels, four of each source with different totals.
fn blend(levels: &[Level]) -> Counts32 {
    let mut shares = Counts32::new();
    let mut mass = 1.0f32;
    let (mut used, mut last) = ([0, 0], [0, 0]);
    for level in levels {
        if mass <= 0.01 {
            break;
        }
        let source = usize::from(level.own);
        let total: u32 = level.counts.values().sum();
        if total == 0 || used[source] == 4 || total == last[source] {
            continue;
        }
        last[source] = total;
        used[source] += 1;
        let mut followers: Vec<(Reverse<u32>, u32)> = level
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
        let weight = weight(level.own, level.length, total, level.counts.len(), dominant);
        for (Reverse(count), token) in followers {
            if token < START {
                *shares.entry(token).or_default() += mass * weight * count as f32 / total as f32;
            }
        }
        mass *= 1.0 - weight;
    }
    shares
}

type Counts32 = BTreeMap<u32, f32>;

fn weight(own: bool, length: usize, total: u32, distinct: usize, dominant: bool) -> f32 {
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
