//! What followed the most recent occurrence of a context, and what the target knew when it drew it.

use crate::{
    id::{Child, Pos, SeqId, TOKEN_LIMIT, Token},
    known::Distribution,
    locus::Locus,
    tree::Tree,
};

/// The token that followed an occurrence, and the distribution it was drawn from: empty if none was given, or if the token
/// was nearly certain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observation {
    /// The token.
    pub token: u32,
    /// What it was drawn from.
    pub distribution: Distribution,
}

impl Observation {
    pub(crate) fn bare(token: Token) -> Self {
        Self {
            token,
            distribution: Distribution::default(),
        }
    }

    /// The likeliest other token, where that is known.
    pub(crate) fn instead(&self) -> Option<Token> {
        let mut others = self.distribution.tokens().iter().copied();
        others.find(|&other| other != self.token)
    }
}

/// What followed the most recent occurrence of a context, in each source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latest {
    /// In the request's prompt and output.
    pub own: Option<Observation>,
    /// In the problem's other rollouts.
    pub history: Option<Observation>,
}

impl Tree {
    /// What followed the most recent occurrence of `context`, 1 to `max_depth` tokens, in the tree.
    ///
    /// # Errors
    /// If `context` is empty, longer than `max_depth`, or contains a token of 2^31 or larger.
    pub fn latest_follower(&self, context: &[u32]) -> Result<Option<Observation>, crate::Error> {
        Ok(self.find(context)?.and_then(|at| self.latest(&at, None)))
    }

    /// What followed the string at `at` in its last occurrence, in the order of the text, unless that is in the sequence `except`
    /// or goes on with no token: then in the last that will do of those that the place and the edges below it remember.
    pub(crate) fn latest(&self, at: &Locus, except: Option<SeqId>) -> Option<Observation> {
        let usable = |start: &Pos| self.follower(*start, at.depth(), except).is_some();
        let start = match self.below(at) {
            Child::Leaf(start) => Some(start).filter(usable),
            Child::Node(id) => {
                let node = self.nodes.get(id);
                Some(node.recent()).filter(usable).or_else(|| {
                    let below = self.nodes.main_children(id).map(|child| match child {
                        Child::Leaf(start) => start,
                        Child::Node(id) => self.nodes.get(id).recent(),
                    });
                    below.chain([node.position()]).filter(usable).max()
                })
            }
        }?;
        self.follower(start, at.depth(), except)
    }

    /// The token `depth` places after `start`, if the text goes so far, it is a token of a user's, and of another sequence.
    fn follower(&self, start: Pos, depth: u32, except: Option<SeqId>) -> Option<Observation> {
        let (owner, offset) = self.text.owner(start);
        if Some(owner) == except || offset + depth >= self.text.record(owner).len() {
            return None;
        }
        let token = self.text.token(start, depth);
        (token < TOKEN_LIMIT).then(|| Observation {
            token,
            distribution: self.text.known(start, depth),
        })
    }
}
