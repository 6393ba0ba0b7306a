//! The rule by which a draft is made from what the target knew, by brute force.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use das_tree::{DraftOptions, Shape};

use crate::{
    learned::{
        Cell, Kind, Learned, Mixture, Of, Row, Share, Votes, apart, cell, instead, plain, votes,
    },
    numbers::*,
    oracle::{Request, in_units, sum},
    texts::Texts,
};

/// What may be drawn on.
#[derive(Clone, Copy, Debug)]
pub struct Ideas {
    pub soft: bool,
    pub shared: bool,
    pub rejected: bool,
}

/// Someone who wants a draft.
pub struct Asker<'a> {
    pub texts: &'a Texts,
    /// The text that is the request's own, unless it is in no tree.
    pub text: Option<usize>,
    pub prompt: usize,
    /// Contexts, and what counts say of them.
    pub request: Request<'a>,
    pub problem: u64,
    pub ideas: Ideas,
    pub learned: &'a Learned,
    /// What the own text has been made of, if distributions came with it.
    pub recent: Option<&'a Mixture>,
    /// What could have been in place of the last token of the own text.
    pub instead: Option<u32>,
    pub options: DraftOptions,
}

/// A drafted node.
#[derive(Clone, Copy, Debug)]
pub struct Node {
    pub token: u32,
    pub parent: i32,
    pub probability: f32,
    pub share: Share,
}

/// A draft, and the evidence about its first token: what counts said and left, and levels with their votes.
#[derive(Clone, Debug, Default)]
pub struct Expectation {
    pub nodes: Vec<Node>,
    counted: BTreeMap<u32, Share>,
    left: f32,
    levels: Vec<(Cell, Votes)>,
    /// Kinds of evidence asked anywhere.
    pub asked: BTreeSet<Kind>,
}

/// What is mixed at a node.
struct Mix {
    shares: BTreeMap<u32, Share>,
    left: f32,
    levels: Vec<(Cell, Votes)>,
    /// What counts said and left.
    counted: BTreeMap<u32, Share>,
    counts_left: f32,
    /// History contexts that are of use below.
    contexts: Vec<usize>,
    /// What was kept where the first level of own output or history was seen.
    foreseen: Row,
}

impl Expectation {
    /// Learns from the tokens that came.
    pub fn judge(&self, tokens: &[u32], learned: &mut Learned) {
        let token = tokens[0];
        let given = |(cell, votes): &(Cell, Votes)| {
            let vote = votes.iter().find(|vote| vote.0 == token);
            (*cell, vote.map_or(0.0, |vote| vote.1))
        };
        let given: Vec<(Cell, f32)> = self.levels.iter().map(given).collect();
        let before = self.counted.get(&token).map_or(0.0, |share| share.estimate);
        learned.judge(&given, before, self.left);
        let mut at = Some(-1);
        for &token in tokens {
            let Some(parent) = at else { break };
            at = None;
            for (i, node) in self.nodes.iter().enumerate() {
                if node.parent == parent {
                    learned.compare(node.share, node.token == token);
                    if node.token == token {
                        at = Some(i as i32);
                    }
                }
            }
        }
    }
}

impl Asker<'_> {
    /// Whether distributions take the place of counts.
    fn informed(&self) -> bool {
        self.ideas.soft && (self.recent.is_some() || self.texts.knows)
    }

    pub fn draft(&self) -> Expectation {
        let mut draft = Expectation {
            left: 1.0,
            ..Expectation::default()
        };
        if self.options.max_nodes == 0 {
            return draft;
        }
        let [own, history] = self.request.contexts();
        // Per node, the root first: its history contexts.
        let mut contexts = Vec::new();
        // And what is foreseen there.
        let mut foreseen: Vec<Row> = Vec::new();
        let mut waiting: Vec<Node> = Vec::new();
        let (mut parent, mut reached, mut path) = (-1, 1.0, Vec::new());
        loop {
            let inherited: &Vec<usize> = match parent {
                -1 => &history,
                _ => &contexts[(1 + draft.nodes[parent as usize].parent) as usize],
            };
            let instead = match parent {
                -1 => self.instead,
                _ => {
                    let node = draft.nodes[parent as usize];
                    let above = &foreseen[(1 + node.parent) as usize];
                    instead(node.token, &above[..above.len().min(2)].to_vec())
                }
            };
            let mix = self.mix(&path, reached, [&own, inherited], instead);
            draft.asked.extend(mix.levels.iter().map(|level| level.0.0));
            let mut children = self.children(parent, reached, &mix.shares);
            contexts.push(mix.contexts);
            foreseen.push(mix.foreseen);
            if parent == -1 {
                (draft.counted, draft.left, draft.levels) =
                    (mix.counted, mix.counts_left, mix.levels);
            }
            children.sort_by(order);
            if self.options.shape == Shape::Chain {
                children.truncate(1);
            }
            waiting.extend(children);
            waiting.sort_by(order);
            if waiting.is_empty() {
                return draft;
            }
            let next = waiting.remove(0);
            draft.nodes.push(next);
            if draft.nodes.len() == self.options.max_nodes {
                return draft;
            }
            (parent, reached) = (draft.nodes.len() as i32 - 1, next.probability);
            path = path_to(&draft.nodes, parent);
        }
    }

    fn children(&self, parent: i32, reached: f32, shares: &BTreeMap<u32, Share>) -> Vec<Node> {
        let calibrated = self.informed() || self.ideas.shared;
        let child = |(&token, &share): (&u32, &Share)| {
            let worth = if calibrated {
                self.learned.worth(share)
            } else {
                share.estimate
            };
            Node {
                token,
                parent,
                probability: reached * worth,
                share,
            }
        };
        let likely = shares
            .iter()
            .filter(|(_, share)| share.estimate >= LEAST_SHARE);
        let children = likely.map(child);
        children
            .filter(|child| child.probability >= self.options.min_probability)
            .collect()
    }

    /// Mixes the evidence after a path, which is reached with some probability.
    fn mix(
        &self,
        path: &[u32],
        reached: f32,
        [own, history]: [&[usize]; 2],
        instead: Option<u32>,
    ) -> Mix {
        let mut mix = Mix {
            shares: BTreeMap::new(),
            left: 1.0,
            levels: Vec::new(),
            counted: BTreeMap::new(),
            counts_left: 1.0,
            contexts: history.to_vec(),
            foreseen: Row::new(),
        };
        if self.informed() {
            let seen = self.seen(path, history);
            let of_output = seen.iter().find(|seen| seen.0.0.0 != Kind::Prompt);
            mix.foreseen = of_output.map(|seen| seen.1.clone()).unwrap_or_default();
            seen.into_iter().for_each(|seen| self.add(&mut mix, seen.0));
        } else {
            let (blended, kept) = self.request.blend(path, own, history);
            let share = |(token, (estimate, voices))| (token, Share { estimate, voices });
            mix.shares = blended.shares.into_iter().map(share).collect();
            (mix.left, mix.contexts) = (blended.left, kept);
            if self.ideas.shared {
                (mix.counted, mix.counts_left) = (mix.shares.clone(), mix.left);
            }
        }
        let least = (LEAST_HEARD / self.options.max_nodes as f32).min(MOST_UNHEARD);
        let matters = |mix: &Mix| path.is_empty() || reached * mix.left >= least;
        for (kind, tokens) in self.rows() {
            if matters(&mix) {
                let level = self.row(path, kind, tokens, instead);
                level
                    .into_iter()
                    .for_each(|level| self.add(&mut mix, level));
            }
        }
        if let Some(recent) = self.recent.filter(|_| self.informed() && matters(&mix)) {
            let votes = votes(self.options.coupling, path.len(), &recent.entries);
            self.add(&mut mix, (cell(Kind::Recent, 1, 1), votes));
        }
        mix
    }

    /// The rows asked, in order, and how many last tokens their contexts look at.
    fn rows(&self) -> Vec<(Kind, usize)> {
        let mut rows = Vec::new();
        if self.ideas.rejected && self.informed() {
            rows.extend([(Kind::Rejected2, 2), (Kind::Rejected1, 1)]);
        }
        if self.informed() {
            rows.push((Kind::Beside, 1));
        }
        if self.ideas.shared {
            rows.extend([
                (Kind::SharedApart, 3),
                (Kind::Shared2, 2),
                (Kind::Shared1, 1),
            ]);
        }
        rows
    }

    /// Mixes a level in, if there is enough left.
    fn add(&self, mix: &mut Mix, (cell, votes): (Cell, Votes)) {
        if mix.left > LEAST_LEFT {
            let part = self.learned.part(cell);
            for &(token, vote) in &votes {
                let share = mix.shares.entry(token).or_default();
                share.estimate += mix.left * (part * vote);
                share.voices += u32::from(vote >= A_VOICE);
            }
            mix.left *= 1.0 - part;
        }
        mix.levels.push((cell, votes));
    }

    /// What a token that was seen says, `depth` tokens on.
    fn vote(&self, token: u32, row: &Row, depth: usize) -> Votes {
        if row.is_empty() {
            vec![(token, 1.0)]
        } else {
            votes(self.options.coupling, depth, &plain(row))
        }
    }

    /// The level of a kind's row, if there is one, for which so many last tokens are needed.
    fn row(
        &self,
        path: &[u32],
        kind: Kind,
        tokens: usize,
        instead: Option<u32>,
    ) -> Option<(Cell, Votes)> {
        let before = [&self.request.own[..], path].concat();
        let last = &before[before.len().checked_sub(tokens)?..];
        let of = match kind {
            Kind::Rejected2 | Kind::Rejected1 => Of::Rejected(self.problem),
            Kind::Beside => Of::Beside(self.problem),
            _ => Of::All,
        };
        let context = match kind {
            Kind::SharedApart => apart(last),
            Kind::Beside => vec![last[0], instead?],
            _ => last.to_vec(),
        };
        let row = self.learned.row(of, &context)?;
        let votes = votes(self.options.coupling, path.len(), &row.entries);
        Some((cell(kind, tokens.min(2), row.seen.into()), votes))
    }

    /// Levels of own text and history, longest context first, own text first among equals; and what was kept where they were
    /// seen.
    fn seen(&self, path: &[u32], history: &[usize]) -> Vec<((Cell, Votes), Row)> {
        let own = self.own_levels(path).into_iter();
        let history = self.history_levels(path, history).into_iter();
        let own = own.map(|(length, level, row)| (length, true, (level, row)));
        let history = history.map(|(length, level, row)| (length, false, (level, row)));
        let mut all: Vec<_> = own.chain(history).collect();
        all.sort_by_key(|&(length, own, _)| Reverse((length, own)));
        all.into_iter().map(|(_, _, seen)| seen).collect()
    }

    fn own_levels(&self, path: &[u32]) -> Vec<(usize, (Cell, Votes), Row)> {
        let own = &self.request.own;
        let Some((&last, before)) = own.split_last() else {
            return Vec::new();
        };
        let longest = self.texts.oracle.max_depth / 2;
        // Where the last token occurred before and was followed by the path and more: how many tokens agree, and what came.
        let mut found: Vec<(usize, usize)> = Vec::new();
        for at in (0..before.len()).filter(|&at| own[at] == last && at >= self.request.oldest) {
            let pairs = own.iter().rev().zip(own[..=at].iter().rev());
            let agree = pairs.take(longest).take_while(|(a, b)| a == b).count();
            let next = at + 1 + path.len();
            if own[at + 1..].starts_with(path) && next < own.len() {
                found.push((agree, next));
            }
        }
        let lengths: BTreeSet<Reverse<usize>> =
            found.iter().map(|&(agree, _)| Reverse(agree)).collect();
        let level = |Reverse(length): Reverse<usize>| {
            let of_it = found.iter().filter(|&&(agree, _)| agree >= length);
            let next = of_it
                .clone()
                .map(|&(_, next)| next)
                .max()
                .expect("at least one");
            let row = self.own_row(next);
            let kind = match next < self.prompt {
                true => Kind::Prompt,
                false if row.is_empty() => Kind::OwnSure,
                false => Kind::Own,
            };
            let cell = cell(kind, length + path.len(), of_it.count() as u64);
            let votes = self.vote(own[next], &row, path.len());
            (length, (cell, votes), row)
        };
        lengths.into_iter().take(LEVELS).map(level).collect()
    }

    /// What is kept beside a token of the own text.
    fn own_row(&self, at: usize) -> Row {
        match (self.text, at.checked_sub(self.prompt)) {
            (Some(text), Some(output)) => self.texts.row(text, output + 1).clone(),
            _ => Row::new(),
        }
    }

    fn history_levels(&self, path: &[u32], contexts: &[usize]) -> Vec<(usize, (Cell, Votes), Row)> {
        let tail = &self.request.tail;
        let mut levels = Vec::new();
        let mut last = 0;
        for &length in contexts {
            let string = [&tail[tail.len() - length..], path].concat();
            let (all, own) = self.request.history(length, path);
            let level = self.history_level(&string, sum(&all) - sum(&own), path.len(), &mut last);
            levels.extend(level.map(|(level, row)| (length, level, row)));
        }
        // The last drafted token begins a context of its own.
        if let Some(&token) = path.last().filter(|_| levels.len() < LEVELS) {
            let level = self.history_level(&[token], self.total(&[token]), path.len(), &mut last);
            levels.extend(level.map(|(level, row)| (0, level, row)));
        }
        levels.truncate(LEVELS);
        levels
    }

    /// A level of what followed a string, which weighs so much, unless that is what the `last` one weighed.
    fn history_level(
        &self,
        string: &[u32],
        total: u64,
        depth: usize,
        last: &mut u64,
    ) -> Option<((Cell, Votes), Row)> {
        if string.len() >= self.texts.oracle.max_depth || total == 0 || total == *last {
            return None;
        }
        let (token, row) = self.texts.latest(string, self.text)?;
        *last = total;
        let kind = if row.is_empty() {
            Kind::HistorySure
        } else {
            Kind::History
        };
        let cell = cell(kind, string.len(), in_units(total, self.texts.oracle.unit));
        Some(((cell, self.vote(token, &row, depth)), row))
    }

    /// Weight of the counted occurrences of a string that something follows.
    fn total(&self, string: &[u32]) -> u64 {
        let texts = self.texts.oracle.texts.iter().enumerate();
        let weigh = texts.map(|(id, text)| {
            let starts = 0..self.texts.counted(id);
            let found = starts.filter(|&start| {
                text.symbols[start..].starts_with(string)
                    && text.symbols.len() > start + string.len()
            });
            text.weight * found.count() as u64
        });
        weigh.sum()
    }
}

/// More probable first, then the earlier parent, then the smaller token.
fn order(one: &Node, other: &Node) -> std::cmp::Ordering {
    let by_probability = other.probability.total_cmp(&one.probability);
    by_probability.then((one.parent, one.token).cmp(&(other.parent, other.token)))
}

/// The tokens down to a node.
pub fn path_to(nodes: &[Node], mut node: i32) -> Vec<u32> {
    let mut path = Vec::new();
    while node >= 0 {
        path.push(nodes[node as usize].token);
        node = nodes[node as usize].parent;
    }
    path.reverse();
    path
}
