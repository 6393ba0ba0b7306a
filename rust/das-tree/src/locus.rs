//! Reading the tree: places in it, steps along edges, suffix links. Nothing here ever waits or retries.
//!
//! A reader may hold a place while the indexer changes the tree around it. That is safe, because what it holds never
//! becomes false: a node inserted on an edge leaves the edge's old target with the same text above it, and a leaf taken
//! over by another text leaves the old one readable.

use std::num::NonZeroU64;

use crate::{
    id::{Child, NONE, NodeId, Pos, ROOT, Token},
    sync::fetch,
    tree::Tree,
};

/// The place of a string: at a node, or on the way from it down an edge. Drafting moves many of these, so it is two words that
/// fit registers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Locus {
    /// The node, and 32 bits up where the edge leads; zero at the node itself.
    place: u64,
    /// Start of an occurrence of the whole string down to the end of the edge; 32 bits up the length of the string, eight more
    /// bits up the depth at which the edge ends. Never zero.
    label: NonZeroU64,
}

/// The edge a locus is on, as it was when the locus came to it.
#[derive(Clone, Copy, Debug)]
struct Way {
    /// Where the edge leads.
    below: Child,
    /// Start of an occurrence of the whole string down to `end`.
    start: Pos,
    /// The depth at which the label ends: at the node below, or where a leaf's text ends for now.
    end: u32,
}

/// Where a step goes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ahead {
    Nowhere,
    /// Along the edge.
    Along,
    /// Into an edge that leads there.
    Into(Child),
}

const NEVER_ZERO: u64 = 1 << 48;

impl Locus {
    pub(crate) const ROOT: Self = Self {
        place: ROOT as u64,
        label: NonZeroU64::new(NEVER_ZERO).unwrap(),
    };

    fn at(node: NodeId, depth: u32) -> Self {
        Self {
            place: u64::from(node),
            label: Self::ROOT.label | u64::from(depth) << 32,
        }
    }

    fn on(node: NodeId, way: Way, depth: u32) -> Self {
        let shape = u64::from(depth | way.end << 8);
        Self {
            place: u64::from(way.below.to_bits()) << 32 | u64::from(node),
            label: Self::ROOT.label | shape << 32 | u64::from(way.start),
        }
    }

    fn node(&self) -> NodeId {
        self.place as u32
    }

    /// Length of the string.
    pub(crate) fn depth(&self) -> u32 {
        (self.label.get() >> 32) as u32 & 0xff
    }

    fn edge(&self) -> Option<Way> {
        let below = (self.place >> 32) as u32;
        (below != 0).then(|| Way {
            below: Child::from_bits(below),
            start: self.label.get() as u32,
            end: (self.label.get() >> 40) as u32 & 0xff,
        })
    }
}

/// What has followed a string.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Evidence {
    /// Weight of the occurrences that have a follower, and how many followers differ.
    pub(crate) total: u64,
    pub(crate) distinct: u32,
}

impl Tree {
    /// The place of a non-empty string of at most `max_depth` tokens, if it is in the tree.
    pub(crate) fn locate(&self, tokens: &[Token]) -> Option<Locus> {
        let step = |at, &token| self.step(&at, token);
        tokens.iter().try_fold(Locus::ROOT, step)
    }

    /// The node at the place or, on an edge, what it leads to.
    pub(crate) fn below(&self, at: &Locus) -> Child {
        at.edge().map_or(Child::Node(at.node()), |way| way.below)
    }

    /// Weight of the counted occurrences of the string, with or without a follower.
    pub(crate) fn occurrences(&self, at: &Locus) -> u64 {
        self.nodes.child_count(self.below(at), &self.text)
    }

    /// One token down.
    pub(crate) fn step(&self, at: &Locus, token: Token) -> Option<Locus> {
        self.go(at, self.look(at, token))
    }

    /// The place at `depth` on the edge from `node` to `below`.
    fn enter(&self, node: NodeId, below: Child, depth: u32) -> Locus {
        let way = match below {
            Child::Node(id) => {
                let child = self.nodes.get(id);
                let end = child.depth();
                if end == depth {
                    return Locus::at(id, depth);
                }
                let start = child.position();
                Way { below, start, end }
            }
            Child::Leaf(start) => {
                let (owner, offset) = self.text.owner(start);
                let length = self.text.record(owner).active().indexed - offset;
                let end = length.min(self.max_depth);
                Way { below, start, end }
            }
        };
        Locus::on(node, way, depth)
    }

    /// The token of an edge's label at a depth, if it goes so far.
    fn label(&self, way: &Way, depth: u32) -> Option<Token> {
        (depth < way.end).then(|| self.text.token(way.start, depth))
    }

    /// Weight of the occurrences of the string that have a follower.
    pub(crate) fn total(&self, at: &Locus) -> u64 {
        match at.edge() {
            Some(way) if at.depth() >= way.end => 0,
            // At the depth cap a node has occurrences but no followers.
            None if at.depth() >= self.max_depth => 0,
            _ => self.occurrences(at),
        }
    }

    /// Followers of the string with their counts, into `out` (at a node with more than eight, the eight most frequent),
    /// and their totals.
    pub(crate) fn followers(&self, at: &Locus, out: &mut Vec<(Token, u64)>) -> Evidence {
        out.clear();
        let Some(way) = at.edge() else {
            self.nodes.followers(at.node(), &self.text, out);
            let listed = out.iter().map(|&(_, count)| count).sum();
            // While another thread counts, the parts may be ahead of the whole.
            let total = self.total(at).max(listed);
            let distinct = self.nodes.get(at.node()).degree().max(out.len() as u32);
            return Evidence { total, distinct };
        };
        let Some(token) = self.label(&way, at.depth()) else {
            return Evidence::default();
        };
        let total = self.occurrences(at);
        out.push((token, total));
        Evidence { total, distinct: 1 }
    }

    /// Weight of the occurrences that `token` has followed.
    pub(crate) fn follower_count(&self, at: &Locus, token: Token) -> u64 {
        self.step(at, token)
            .map_or(0, |next| self.occurrences(&next))
    }

    /// The place of the string without its first token; `None` for the empty string, or if another thread is just now
    /// indexing the text that put the string there and has not come to its suffix.
    pub(crate) fn suffix(&self, at: &Locus) -> Option<Locus> {
        let depth = at.depth().checked_sub(1)?;
        if let Child::Node(below) = self.below(at) {
            let link = self.nodes.get(below).link();
            if link != NONE {
                return Some(self.climb(link, depth));
            }
        }
        let node = self.nodes.get(at.node());
        let text = at.edge().map_or_else(|| node.position(), |way| way.start);
        // A link is unset (zero, the root) at the root, at the depth cap and for a moment in a new node: go down from there.
        self.descend(node.link(), depth, |i| self.text.token(text, i + 1))
    }

    /// Asks for what [`Self::followers`] will read.
    pub(crate) fn fetch_followers(&self, at: &Locus) {
        if at.edge().is_none() {
            self.nodes.fetch_followers(at.node());
        }
    }

    /// The first half of [`Self::step`]: looks where it goes, and asks for what is there.
    pub(crate) fn look(&self, at: &Locus, token: Token) -> Ahead {
        let Some(way) = at.edge() else {
            let Some((_, child)) = self.nodes.find(at.node(), token) else {
                return Ahead::Nowhere;
            };
            if let Child::Node(below) = child {
                fetch(self.nodes.get(below));
            }
            return Ahead::Into(child);
        };
        if self.label(&way, at.depth()) == Some(token) {
            Ahead::Along
        } else {
            Ahead::Nowhere
        }
    }

    /// The second half.
    pub(crate) fn go(&self, at: &Locus, ahead: Ahead) -> Option<Locus> {
        let depth = at.depth() + 1;
        match (ahead, at.edge()) {
            (Ahead::Nowhere, _) => None,
            (Ahead::Into(child), _) => Some(self.enter(at.node(), child, depth)),
            (Ahead::Along, way) => {
                let way = way?;
                Some(match way.below {
                    Child::Node(node) if way.end == depth => Locus::at(node, depth),
                    _ => Locus::on(at.node(), way, depth),
                })
            }
        }
    }

    /// The place at `depth` on the way from the root to a node that is not above it.
    fn climb(&self, mut id: NodeId, depth: u32) -> Locus {
        loop {
            let node = self.nodes.get(id);
            if node.depth() == depth {
                return Locus::at(id, depth);
            }
            let (parent, above) = node.above();
            // A split may just have put a node between which the parent does not name yet: then that is passed over.
            if above >= depth && self.nodes.get(parent).depth() >= depth {
                id = parent;
                continue;
            }
            let way = Way {
                below: Child::Node(id),
                start: node.position(),
                end: node.depth(),
            };
            return Locus::on(parent, way, depth);
        }
    }

    /// Goes down from `node` to `depth` along a string all of which, but perhaps for its last token, is known to be in the
    /// tree: looks only at the first token of each edge and at the last of the string.
    pub(crate) fn descend(
        &self,
        mut node: NodeId,
        depth: u32,
        string: impl Fn(u32) -> Token,
    ) -> Option<Locus> {
        loop {
            let above = self.nodes.get(node).depth();
            if above == depth {
                return Some(Locus::at(node, depth));
            }
            let (_, child) = self.nodes.find(node, string(above))?;
            let start = match child {
                Child::Node(next) if self.nodes.get(next).depth() < depth => {
                    node = next;
                    continue;
                }
                Child::Node(next) => self.nodes.get(next).position(),
                Child::Leaf(start) => start,
            };
            let last = depth - 1;
            let agrees = last == above || self.text.token(start, last) == string(last);
            return agrees.then(|| self.enter(node, child, depth));
        }
    }

    /// The longest suffix of (the string at `at`, then `token`) that is in the tree and at most `limit` long.
    pub(crate) fn advance(&self, mut at: Locus, token: Token, limit: u32) -> Locus {
        loop {
            let next = if at.depth() < limit {
                self.step(&at, token)
            } else {
                None
            };
            if let Some(next) = next {
                return next;
            }
            match self.suffix(&at) {
                Some(shorter) => at = shorter,
                None => return Locus::ROOT,
            }
        }
    }
}
