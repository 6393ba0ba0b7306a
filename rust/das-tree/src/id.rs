//! 32-bit ids: tokens and their markers, positions in the text, nodes, and what an edge points to.

use crate::error::{Error, Kind};

/// A token as the tree stores it: an id of the user's below [`TOKEN_LIMIT`], or a marker from there on.
pub(crate) type Token = u32;
/// Index of a sequence in its tree.
pub(crate) type SeqId = u32;
/// Index of an internal node.
pub(crate) type NodeId = u32;
/// A place in the tree's text: chunk number * 64 + offset in the chunk. Always below 2^31.
pub(crate) type Pos = u32;

/// User tokens are below this; what is at or above it is a marker.
pub(crate) const TOKEN_LIMIT: Token = 1 << 31;
/// First symbol of every sequence, the same for all: "beginning of a response" is a context like any other.
pub(crate) const START: Token = TOKEN_LIMIT;
/// Not a token: marks an edge slot that leads to a sub-block (see `node.rs`).
pub(crate) const SUB_BLOCK: Token = u32::MAX;

/// The root is the first node, the only one without a parent or a link.
pub(crate) const ROOT: NodeId = 0;
/// "No node", "no chunk", "no list": zero is never the target of a reference of this kind.
pub(crate) const NONE: u32 = 0;

/// The symbol that ends sequence `id`. It occurs once in the tree, so it turns every suffix into a leaf.
pub(crate) fn end_marker(id: SeqId) -> Token {
    START + 1 + id
}

/// Checks that all `tokens` are user tokens.
pub(crate) fn check_tokens(tokens: &[Token]) -> Result<(), Error> {
    match tokens.iter().position(|&token| token >= TOKEN_LIMIT) {
        None => Ok(()),
        Some(index) => Err(Kind::Token {
            index,
            value: tokens[index],
        }
        .into()),
    }
}

/// What an edge leads to: an internal node, or a leaf, which is nothing but the position where its suffix starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Child {
    Node(NodeId),
    Leaf(Pos),
}

const LEAF_BIT: u32 = 1 << 31;

impl Child {
    pub(crate) fn to_bits(self) -> u32 {
        match self {
            Child::Node(id) => id,
            Child::Leaf(start) => start | LEAF_BIT,
        }
    }

    pub(crate) fn from_bits(bits: u32) -> Self {
        if bits & LEAF_BIT == 0 {
            Child::Node(bits)
        } else {
            Child::Leaf(bits & !LEAF_BIT)
        }
    }
}

/// An edge in one word: first token of its label and where it leads. Zero is "no edge", since no edge leads to the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Edge {
    pub(crate) token: Token,
    pub(crate) child: Child,
}

impl Edge {
    pub(crate) const EMPTY: u64 = 0;

    pub(crate) fn to_bits(self) -> u64 {
        u64::from(self.token) << 32 | u64::from(self.child.to_bits())
    }

    pub(crate) fn from_bits(bits: u64) -> Self {
        Self {
            token: (bits >> 32) as u32,
            child: Child::from_bits(bits as u32),
        }
    }
}
