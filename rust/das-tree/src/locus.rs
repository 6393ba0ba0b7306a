//! Reading the tree: places in it, steps along edges, suffix links. Nothing here ever waits or retries.
//!
//! A reader may hold a place while the indexer changes the tree around it. That is safe, because what it holds never
//! becomes false: a node inserted on an edge leaves the edge's old target with the same text above it, and a leaf taken
//! over by another text leaves the old one readable.

use crate::{
    id::{Child, NodeId, ROOT, Token},
    tree::Tree,
};

/// The place of a string of length `depth`: at `node`, or on the way from it to `below`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Locus {
    node: NodeId,
    below: Option<Child>,
    pub(crate) depth: u32,
}

impl Locus {
    pub(crate) const ROOT: Self = Self {
        node: ROOT,
        below: None,
        depth: 0,
    };
}

/// What has followed a string.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Evidence {
    /// Occurrences that have a follower, and how many followers differ.
    pub(crate) total: u32,
    pub(crate) distinct: u32,
}

impl Tree {
    /// The place of a non-empty string of at most `max_depth` tokens, if it is in the tree.
    pub(crate) fn locate(&self, tokens: &[Token]) -> Option<Locus> {
        tokens
            .iter()
            .try_fold(Locus::ROOT, |at, &token| self.step(&at, token))
    }

    /// Counted occurrences of the string, with or without a follower.
    pub(crate) fn occurrences(&self, at: &Locus) -> u32 {
        self.nodes
            .child_count(at.below.unwrap_or(Child::Node(at.node)))
    }

    /// One token down.
    pub(crate) fn step(&self, at: &Locus, token: Token) -> Option<Locus> {
        let child = match at.below {
            Some(child) if self.label(child, at.depth) == Some(token) => child,
            Some(_) => return None,
            None => self.nodes.find(at.node, token)?.1,
        };
        Some(self.canonical(Locus {
            node: at.node,
            below: Some(child),
            depth: at.depth + 1,
        }))
    }

    /// Moves to the node `below` if that is where the locus is.
    fn canonical(&self, at: Locus) -> Locus {
        match at.below {
            Some(Child::Node(node)) if self.nodes.get(node).depth() == at.depth => Locus {
                node,
                below: None,
                depth: at.depth,
            },
            _ => at,
        }
    }

    /// The token at `depth` of the string that `child` ends, if there is one (a leaf ends where its text does).
    fn label(&self, child: Child, depth: u32) -> Option<Token> {
        let start = match child {
            Child::Node(node) => self.nodes.get(node).position(),
            Child::Leaf(start) => {
                let (owner, offset) = self.text.owner(start);
                if offset + depth >= self.text.record(owner).active().indexed
                    || depth >= self.max_depth
                {
                    return None;
                }
                start
            }
        };
        Some(self.text.token(start, depth))
    }

    /// Followers of the string with their counts, into `out` (at a node with more than eight, the eight most frequent),
    /// and their totals.
    pub(crate) fn followers(&self, at: &Locus, out: &mut Vec<(Token, u32)>) -> Evidence {
        out.clear();
        let Some(child) = at.below else {
            self.nodes.followers(at.node, out);
            let node = self.nodes.get(at.node);
            let listed = out.iter().map(|&(_, count)| count).sum();
            // At the depth cap a node has occurrences but no followers.
            let total = if out.is_empty() {
                0
            } else {
                node.count().max(listed)
            };
            return Evidence {
                total,
                distinct: node.degree().max(out.len() as u32),
            };
        };
        let Some(token) = self.label(child, at.depth) else {
            return Evidence::default();
        };
        let total = self.nodes.child_count(child);
        out.push((token, total));
        Evidence { total, distinct: 1 }
    }

    /// How often `token` has followed the string.
    pub(crate) fn follower_count(&self, at: &Locus, token: Token) -> u32 {
        self.step(at, token)
            .map_or(0, |next| self.occurrences(&next))
    }

    /// The place of the string without its first token; `None` for the empty string, or if another thread is just now
    /// indexing the text that put the string there and has not come to its suffix.
    pub(crate) fn suffix(&self, at: &Locus) -> Option<Locus> {
        let depth = at.depth.checked_sub(1)?;
        let node = self.nodes.get(at.node);
        let target = node.link();
        let text = match at.below {
            Some(Child::Leaf(start)) => start,
            Some(Child::Node(below)) => self.nodes.get(below).position(),
            None => node.position(),
        };
        // A link is unset (zero, the root) at the root, at the depth cap and for a moment in a new node: go down from there.
        self.descend(target, depth, |i| self.text.token(text, i + 1))
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
                return Some(Locus {
                    node,
                    below: None,
                    depth,
                });
            }
            let child = self.nodes.find(node, string(above))?.1;
            let (start, below) = match child {
                Child::Node(next) => (
                    self.nodes.get(next).position(),
                    self.nodes.get(next).depth(),
                ),
                Child::Leaf(start) => (start, u32::MAX),
            };
            if below >= depth
                && depth - 1 > above
                && self.text.token(start, depth - 1) != string(depth - 1)
            {
                return None;
            }
            match child {
                Child::Node(next) if below <= depth => node = next,
                _ => {
                    return Some(Locus {
                        node,
                        below: Some(child),
                        depth,
                    });
                }
            }
        }
    }

    /// The longest suffix of (the string at `at`, then `token`) that is in the tree and at most `limit` long.
    pub(crate) fn advance(&self, mut at: Locus, token: Token, limit: u32) -> Locus {
        loop {
            if at.depth < limit
                && let Some(next) = self.step(&at, token)
            {
                return next;
            }
            match self.suffix(&at) {
                Some(shorter) => at = shorter,
                None => return Locus::ROOT,
            }
        }
    }
}
