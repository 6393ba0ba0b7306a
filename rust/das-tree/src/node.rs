//! Internal nodes: one 64-byte line each, with room for four edges; more edges go to a small trie beside it.
//!
//! All fields are written by the one thread that indexes; readers may look at any time. What makes that sound: a node's
//! string never changes; an edge, once there, keeps its first token, and its target only ever moves to something whose
//! label begins with the same text.

use crate::{
    arena::{Arena, Meter},
    id::{Child, Edge, NONE, NodeId, Pos, SUB_BLOCK, Token},
    sync::{AtomicU32, AtomicU64, Ordering},
};

/// Edges kept in the node itself. On recorded rollouts eleven nodes in twelve have no more.
const INLINE: usize = 4;
/// Followers kept in order of count at a node with more edges than fit inline.
pub(crate) const TOP: usize = 8;

/// A node stands for the string `text[position..position + depth]`.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(crate) struct Node {
    edges: [AtomicU64; INLINE],
    /// The node of this string without its first token; `NONE` until known. The root has none.
    link: AtomicU32,
    /// Counted occurrences: leaves below, or at the depth cap every occurrence.
    count: AtomicU32,
    /// Start of the first occurrence.
    position: AtomicU32,
    /// Start of the most recently counted occurrence.
    recent: AtomicU32,
    /// The node above. Used only by whoever indexes.
    parent: AtomicU32,
    /// First token of the edge from there. Used only by whoever indexes.
    first: AtomicU32,
    /// The [`Wide`] of a node with more than four edges, else `NONE`.
    wide: AtomicU32,
    /// Length of the string, in the low 8 bits (set once); number of edges, in the others.
    shape: AtomicU32,
}

/// What a node with more than four edges has besides: the first block of the trie of the others, and its top followers.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(crate) struct Wide {
    block: Block,
    /// `(count, !token)` in falling order: by count, then smaller token first. Zero if unused.
    top: [AtomicU64; TOP],
}

/// Eight slots of the edge trie, chosen by three bits of the token's hash. A slot holds an edge, or (under the token
/// [`SUB_BLOCK`]) the block in which the edges that share it go on. Nothing is ever removed or rehashed.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(crate) struct Block([AtomicU64; 8]);

/// The slot at a level of the trie. The multiplication is a bijection, so two tokens part by level 10 at the latest.
fn slot_index(token: Token, level: u32) -> usize {
    (token.wrapping_mul(0x9E37_79B1).rotate_left(3 * (level + 1)) & 7) as usize
}

/// What a new node is made of.
pub(crate) struct NewNode {
    pub(crate) position: Pos,
    pub(crate) depth: u32,
    pub(crate) parent: NodeId,
    pub(crate) first: Token,
    pub(crate) count: u32,
    pub(crate) recent: Pos,
}

impl Node {
    pub(crate) fn depth(&self) -> u32 {
        self.shape.load(Ordering::Relaxed) & 0xff // set before the node was published
    }

    pub(crate) fn degree(&self) -> u32 {
        self.shape.load(Ordering::Relaxed) >> 8 // to a reader a statistic
    }

    pub(crate) fn position(&self) -> Pos {
        self.position.load(Ordering::Relaxed) // set before the node was published
    }

    pub(crate) fn count(&self) -> u32 {
        self.count.load(Ordering::Relaxed) // to a reader a statistic
    }

    /// Start of the most recent counted occurrence.
    pub(crate) fn recent(&self) -> Pos {
        self.recent.load(Ordering::Acquire) // pairs with `add_occurrence`: the text there is visible
    }

    pub(crate) fn parent(&self) -> NodeId {
        self.parent.load(Ordering::Relaxed) // read by whoever indexes, or when nobody does
    }

    pub(crate) fn first(&self) -> Token {
        self.first.load(Ordering::Relaxed) // read by whoever indexes, or when nobody does
    }

    pub(crate) fn link(&self) -> NodeId {
        self.link.load(Ordering::Acquire) // pairs with `set_link`: the target's fields are visible
    }

    pub(crate) fn set_link(&self, target: NodeId) {
        self.link.store(target, Ordering::Release); // pairs with `link`
    }

    /// Notes that the node now hangs below `parent`, by an edge that begins with `first`.
    pub(crate) fn move_below(&self, parent: NodeId, first: Token) {
        self.parent.store(parent, Ordering::Relaxed); // only whoever indexes reads it
        self.first.store(first, Ordering::Relaxed); // as above
    }

    /// Counts one more occurrence, that starts at `start`.
    pub(crate) fn add_occurrence(&self, start: Pos) {
        self.count.store(self.count() + 1, Ordering::Relaxed); // one writer, so no read-modify-write; a statistic
        self.recent.store(start, Ordering::Release); // pairs with `recent`
    }
}

/// All nodes of a tree and their edges.
#[derive(Debug)]
pub(crate) struct Nodes {
    nodes: Arena<Node>,
    wides: Arena<Wide>,
    blocks: Arena<Block>,
}

/// Reads an edge slot.
fn load(slot: &AtomicU64) -> u64 {
    slot.load(Ordering::Acquire) // pairs with `publish`: what the edge leads to is visible
}

/// Writes an edge slot.
pub(crate) fn publish(slot: &AtomicU64, edge: Edge) {
    slot.store(edge.to_bits(), Ordering::Release); // pairs with `load`
}

impl Nodes {
    pub(crate) fn new(meter: &Meter) -> Self {
        let all = Self {
            nodes: Arena::new(),
            wides: Arena::new(),
            blocks: Arena::new(),
        };
        all.nodes.push(meter); // the root
        all.wides.push(meter); // 0 stands for `NONE`
        all
    }

    pub(crate) fn get(&self, id: NodeId) -> &Node {
        self.nodes.get(id)
    }

    pub(crate) fn len(&self) -> u32 {
        self.nodes.len()
    }

    /// A new node, not yet reachable.
    pub(crate) fn add(&self, new: &NewNode, meter: &Meter) -> NodeId {
        let id = self.nodes.push(meter);
        let node = self.nodes.get(id);
        node.position.store(new.position, Ordering::Relaxed); // this and the next five: published by the edge to the node
        node.recent.store(new.recent, Ordering::Relaxed);
        node.shape.store(new.depth, Ordering::Relaxed);
        node.parent.store(new.parent, Ordering::Relaxed);
        node.first.store(new.first, Ordering::Relaxed);
        node.count.store(new.count, Ordering::Relaxed);
        id
    }

    /// The slot of the edge whose label begins with `token`, and what it held when read.
    pub(crate) fn find(&self, id: NodeId, token: Token) -> Option<(&AtomicU64, Child)> {
        let node = self.nodes.get(id);
        for slot in &node.edges {
            let bits = load(slot);
            if (bits >> 32) as u32 == token && bits != Edge::EMPTY {
                return Some((slot, Edge::from_bits(bits).child));
            }
            if bits == Edge::EMPTY {
                return None;
            }
        }
        let wide = node.wide.load(Ordering::Acquire); // pairs with `widen`: the block is visible
        if wide == NONE {
            None
        } else {
            self.find_in_trie(&self.wides.get(wide).block, token)
        }
    }

    fn find_in_trie<'a>(
        &'a self,
        mut block: &'a Block,
        token: Token,
    ) -> Option<(&'a AtomicU64, Child)> {
        for level in 0.. {
            let slot = &block.0[slot_index(token, level)];
            let bits = load(slot);
            let edge = Edge::from_bits(bits);
            if edge.token == SUB_BLOCK {
                block = self.blocks.get(bits as u32);
            } else if edge.token == token && bits != Edge::EMPTY {
                return Some((slot, edge.child));
            } else {
                return None;
            }
        }
        None
    }

    /// Adds an edge whose token the node does not have yet. `counted` is its target's count. Indexer only.
    pub(crate) fn insert(&self, id: NodeId, edge: Edge, counted: u32, meter: &Meter) {
        let node = self.nodes.get(id);
        let degree = node.degree() as usize;
        if degree < INLINE {
            publish(&node.edges[degree], edge);
        } else {
            let wide = self.wides.get(self.widen(node, meter));
            self.insert_in_trie(&wide.block, edge, meter);
            wide.raise(edge.token, counted);
        }
        node.shape.store(
            node.shape.load(Ordering::Relaxed) + 0x100,
            Ordering::Relaxed,
        ); // one writer; a statistic
    }

    /// The node's [`Wide`], made now if it has none.
    fn widen(&self, node: &Node, meter: &Meter) -> u32 {
        let known = node.wide.load(Ordering::Relaxed); // only whoever indexes writes it
        if known != NONE {
            return known;
        }
        let fresh = self.wides.push(meter);
        let wide = self.wides.get(fresh);
        for slot in &node.edges {
            let edge = Edge::from_bits(load(slot));
            wide.raise(edge.token, self.child_count(edge.child));
        }
        node.wide.store(fresh, Ordering::Release); // pairs with `find` and `top`
        fresh
    }

    fn insert_in_trie<'a>(&'a self, mut block: &'a Block, edge: Edge, meter: &Meter) {
        for level in 0.. {
            let slot = &block.0[slot_index(edge.token, level)];
            let bits = load(slot);
            let there = Edge::from_bits(bits);
            if bits == Edge::EMPTY {
                publish(slot, edge);
                return;
            }
            if there.token == SUB_BLOCK {
                block = self.blocks.get(bits as u32);
                continue;
            }
            // Two edges want the slot: both move one level down, the old one before the way to it is changed.
            let id = self.blocks.push(meter);
            let lower = self.blocks.get(id);
            publish(&lower.0[slot_index(there.token, level + 1)], there);
            publish(
                slot,
                Edge {
                    token: SUB_BLOCK,
                    child: Child::Node(id),
                },
            );
            block = lower;
        }
    }

    pub(crate) fn child_count(&self, child: Child) -> u32 {
        match child {
            Child::Leaf(_) => 1,
            Child::Node(id) => self.nodes.get(id).count(),
        }
    }

    /// Keeps the top list of a node in step: its follower `token` is now counted `count` times. Indexer only.
    pub(crate) fn raise(&self, id: NodeId, token: Token, count: u32) {
        let wide = self.nodes.get(id).wide.load(Ordering::Relaxed); // only whoever indexes writes it
        if wide != NONE {
            self.wides.get(wide).raise(token, count);
        }
    }

    /// Followers of a node with their counts, into `out`: all of them if there are at most eight, else the eight most
    /// frequent, ties to the smaller token. Exact while nobody indexes.
    pub(crate) fn followers(&self, id: NodeId, out: &mut Vec<(Token, u32)>) {
        out.clear();
        let node = self.nodes.get(id);
        let wide = node.wide.load(Ordering::Acquire); // pairs with `widen`: the list is visible
        if wide != NONE {
            for slot in &self.wides.get(wide).top {
                let (token, count) = unpack(slot.load(Ordering::Relaxed)); // a hint while somebody indexes
                // While an entry moves up it is there twice.
                if count > 0 && out.iter().all(|&(seen, _)| seen != token) {
                    out.push((token, count));
                }
            }
            return;
        }
        for slot in &node.edges {
            let bits = load(slot);
            if bits == Edge::EMPTY {
                break;
            }
            let edge = Edge::from_bits(bits);
            out.push((edge.token, self.child_count(edge.child)));
        }
    }

    /// All edges of a node, in no particular order.
    pub(crate) fn edges(&self, id: NodeId) -> Vec<Edge> {
        let node = self.nodes.get(id);
        let mut edges: Vec<Edge> = node
            .edges
            .iter()
            .map(load)
            .take_while(|&bits| bits != Edge::EMPTY)
            .map(Edge::from_bits)
            .collect();
        let wide = node.wide.load(Ordering::Acquire); // pairs with `widen`
        if wide != NONE {
            self.collect_trie(&self.wides.get(wide).block, &mut edges);
        }
        edges
    }

    fn collect_trie(&self, block: &Block, out: &mut Vec<Edge>) {
        for bits in block.0.iter().map(load).filter(|&bits| bits != Edge::EMPTY) {
            let edge = Edge::from_bits(bits);
            if edge.token == SUB_BLOCK {
                self.collect_trie(self.blocks.get(bits as u32), out);
            } else {
                out.push(edge);
            }
        }
    }
}

fn pack(token: Token, count: u32) -> u64 {
    u64::from(count) << 32 | u64::from(!token)
}

fn unpack(bits: u64) -> (Token, u32) {
    (!(bits as u32), (bits >> 32) as u32)
}

impl Wide {
    /// Puts `token` with its new, larger count in its place. Counts only grow, and a token outside the list can only enter
    /// it when its own count grows, so the list stays exact.
    fn raise(&self, token: Token, count: u32) {
        let fresh = pack(token, count);
        let get = |i: usize| self.top[i].load(Ordering::Relaxed); // one writer
        let set = |i: usize, bits: u64| self.top[i].store(bits, Ordering::Relaxed); // a hint to readers
        if fresh < get(TOP - 1) {
            return;
        }
        let mut i = (0..TOP)
            .find(|&i| get(i) == 0 || unpack(get(i)).0 == token)
            .unwrap_or(TOP - 1);
        while i > 0 && get(i - 1) < fresh {
            set(i, get(i - 1));
            i -= 1;
        }
        set(i, fresh);
    }
}
