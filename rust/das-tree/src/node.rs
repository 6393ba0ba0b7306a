//! Internal nodes: one 64-byte line each, with room for four edges; more edges go to a small trie beside it.
//!
//! All fields are written by the one thread that indexes; readers may look at any time. What makes that sound: a node's
//! string never changes; an edge, once there, keeps its first token, and its target only ever moves to something whose
//! label begins with the same text.

use crate::{
    arena::Arena,
    id::{Child, Edge, NONE, NodeId, Pos, SUB_BLOCK, Token},
    meter::Meter,
    sync::{AtomicU32, AtomicU64, Ordering, fetch},
    text::Text,
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
    /// Weight of the counted occurrences: of the leaves below, or at the depth cap of every occurrence.
    count: AtomicU64,
    /// The node of this string without its first token; `NONE` until known. The root has none.
    link: AtomicU32,
    /// Of the occurrences that have been counted here, the start of the first and of the last in the order of the text: so they
    /// do not depend on the order in which texts that grow side by side are indexed.
    position: AtomicU32,
    recent: AtomicU32,
    /// The node above.
    parent: AtomicU32,
    /// The [`Wide`] of a node with more than four edges, else `NONE`.
    wide: AtomicU32,
    /// See [`Shape`].
    shape: AtomicU32,
}

/// Length of a node's string (set once), of that of the node above, and the number of edges, as far as 19 bits tell.
#[derive(Clone, Copy)]
struct Shape(u32);

impl Shape {
    const EDGE: u32 = 1 << 13;

    fn new(depth: u32, above: u32) -> Self {
        Self(depth | above << 7)
    }

    fn depth(self) -> u32 {
        self.0 & 0x7f
    }

    fn above(self) -> u32 {
        self.0 >> 7 & 0x3f
    }

    fn degree(self) -> u32 {
        self.0 / Self::EDGE
    }

    fn below(self, above: u32) -> Self {
        Self(self.0 & !(0x3f << 7) | above << 7)
    }

    fn with_edge(self) -> Self {
        Self(self.0.checked_add(Self::EDGE).unwrap_or(self.0))
    }
}

/// What a node with more than four edges has besides: the first block of the trie of the others, and its top followers.
#[derive(Debug, Default)]
#[repr(align(32))]
pub(crate) struct Wide {
    block: Block,
    /// The counts of the top followers in falling order, zero if unused, and their tokens, the smaller first of equals.
    counts: [AtomicU64; TOP],
    tokens: [AtomicU32; TOP],
}

/// Eight slots of the edge trie, chosen by three bits of the token's hash. A slot holds an edge, or (under the token
/// [`SUB_BLOCK`]) the block in which the edges that share it go on. Nothing is ever removed or rehashed.
#[derive(Debug, Default)]
#[repr(align(32))]
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
    /// The depth of the parent.
    pub(crate) above: u32,
    pub(crate) count: u64,
    pub(crate) recent: Pos,
}

impl Node {
    fn shape(&self) -> Shape {
        Shape(self.shape.load(Ordering::Relaxed)) // of what it tells, see each
    }

    pub(crate) fn depth(&self) -> u32 {
        self.shape().depth() // set before the node was published
    }

    pub(crate) fn degree(&self) -> u32 {
        self.shape().degree() // to a reader a statistic
    }

    /// Start of the first counted occurrence.
    pub(crate) fn position(&self) -> Pos {
        self.position.load(Ordering::Acquire) // pairs with `note`: the text there is visible
    }

    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed) // to a reader a statistic
    }

    /// Start of the last counted occurrence.
    pub(crate) fn recent(&self) -> Pos {
        self.recent.load(Ordering::Acquire) // pairs with `note`: the text there is visible
    }

    /// The node above: to a reader, one that is or was.
    pub(crate) fn parent(&self) -> NodeId {
        self.parent.load(Ordering::Acquire) // pairs with `move_below`: what a split put there is visible
    }

    /// The node above, and a depth it does not exceed: its own, or that of one a split has just put between.
    pub(crate) fn above(&self) -> (NodeId, u32) {
        let parent = self.parent(); // first: the depth is at least as new
        (parent, self.shape().above())
    }

    pub(crate) fn link(&self) -> NodeId {
        self.link.load(Ordering::Acquire) // pairs with `set_link`: the target's fields are visible
    }

    pub(crate) fn set_link(&self, target: NodeId) {
        self.link.store(target, Ordering::Release); // pairs with `link`
    }

    /// Notes that the node now hangs below `parent`, at a depth.
    pub(crate) fn move_below(&self, parent: NodeId, depth: u32) {
        let shape = self.shape().below(depth);
        self.shape.store(shape.0, Ordering::Relaxed); // one writer; published with the parent
        self.parent.store(parent, Ordering::Release); // pairs with `parent`
    }

    /// Counts an occurrence that starts at `start`. The gain may be negative, in two's complement: the occurrence takes the
    /// place of one that weighs more.
    pub(crate) fn add_occurrence(&self, start: Pos, gain: u64) {
        // One writer, so no read-modify-write; to a reader a statistic.
        self.count
            .store(self.count().wrapping_add(gain), Ordering::Relaxed);
        self.note(start);
    }

    /// Notes an occurrence that starts at `start`, should it be the first or the last. Returns whether it is; if not, it is
    /// neither at any node above, which has all occurrences of those below.
    pub(crate) fn note(&self, start: Pos) -> bool {
        let (first, last) = (
            self.position.load(Ordering::Relaxed), // this and the next: only whoever indexes writes it
            self.recent.load(Ordering::Relaxed),
        );
        if start < first {
            self.position.store(start, Ordering::Release); // pairs with `position`
        }
        if start > last {
            self.recent.store(start, Ordering::Release); // pairs with `recent`
        }
        start < first || start > last
    }
}

/// All nodes of a tree and their edges.
#[derive(Debug)]
pub(crate) struct Nodes {
    nodes: Arena<Node, 24>,
    wides: Arena<Wide, 24>,
    blocks: Arena<Block, 24>,
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
        node.position.store(new.position, Ordering::Relaxed); // this and the next four: published by the edge to the node
        node.recent.store(new.recent, Ordering::Relaxed);
        let shape = Shape::new(new.depth, new.above);
        node.shape.store(shape.0, Ordering::Relaxed);
        node.parent.store(new.parent, Ordering::Relaxed);
        node.count.store(new.count, Ordering::Relaxed);
        id
    }

    /// The slot of the edge whose label begins with `token`, and what it held when read.
    #[inline]
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
    pub(crate) fn insert(&self, id: NodeId, edge: Edge, counted: u64, text: &Text, meter: &Meter) {
        let node = self.nodes.get(id);
        let degree = node.degree() as usize;
        if degree < INLINE {
            publish(&node.edges[degree], edge);
        } else {
            let wide = self.wides.get(self.widen(node, text, meter));
            self.insert_in_trie(&wide.block, edge, meter);
            wide.raise(edge.token, counted);
        }
        let shape = node.shape().with_edge();
        node.shape.store(shape.0, Ordering::Relaxed); // one writer; a statistic
    }

    /// The node's [`Wide`], made now if it has none.
    fn widen(&self, node: &Node, text: &Text, meter: &Meter) -> u32 {
        let known = node.wide.load(Ordering::Relaxed); // only whoever indexes writes it
        if known != NONE {
            return known;
        }
        let fresh = self.wides.push(meter);
        let wide = self.wides.get(fresh);
        for slot in &node.edges {
            let edge = Edge::from_bits(load(slot));
            wide.raise(edge.token, self.child_count(edge.child, text));
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

    #[inline]
    pub(crate) fn child_count(&self, child: Child, text: &Text) -> u64 {
        match child {
            Child::Leaf(start) => text.weight(start),
            Child::Node(id) => self.nodes.get(id).count(),
        }
    }

    /// Keeps the top list of a node, if it has one, in step: the count of its follower `token` has risen to `count`.
    /// Indexer only.
    #[inline]
    pub(crate) fn raise(&self, node: &Node, token: impl FnOnce() -> Token, count: u64) {
        let wide = node.wide.load(Ordering::Relaxed); // only whoever indexes writes it
        if wide != NONE {
            self.wides.get(wide).raise(token(), count);
        }
    }

    /// Makes the top list of a node, if it has one, anew, since a follower's count has fallen. Indexer only.
    pub(crate) fn relist(&self, id: NodeId, text: &Text) {
        let wide = self.nodes.get(id).wide.load(Ordering::Relaxed); // only whoever indexes writes it
        if wide != NONE {
            let wide = self.wides.get(wide);
            wide.counts
                .iter()
                .for_each(|count| count.store(0, Ordering::Relaxed)); // a hint to readers
            for edge in self.edges(id) {
                wide.raise(edge.token, self.child_count(edge.child, text));
            }
        }
    }

    /// Followers of a node with their counts, into `out`: all of them if there are at most eight, else the eight most
    /// frequent, ties to the smaller token. Exact while nobody indexes.
    pub(crate) fn followers(&self, id: NodeId, text: &Text, out: &mut Vec<(Token, u64)>) {
        out.clear();
        if let Some(wide) = self.wide(id) {
            for (count, token) in wide.top() {
                // While an entry moves up it is there twice.
                if count > 0 && out.iter().all(|&(seen, _)| seen != token) {
                    out.push((token, count));
                }
            }
            return;
        }
        let edges = self.inline_edges(id);
        out.extend(edges.map(|edge| (edge.token, self.child_count(edge.child, text))));
    }

    /// Asks for what [`Self::followers`] will read.
    #[inline]
    pub(crate) fn fetch_followers(&self, id: NodeId) {
        if let Some(wide) = self.wide(id) {
            fetch(&wide.counts);
            fetch(&wide.tokens);
            fetch(&wide.block);
            return;
        }
        for edge in self.inline_edges(id) {
            if let Child::Node(below) = edge.child {
                fetch(self.nodes.get(below));
            }
        }
    }

    /// What a node with more than four edges has besides.
    fn wide(&self, id: NodeId) -> Option<&Wide> {
        let wide = self.nodes.get(id).wide.load(Ordering::Acquire); // pairs with `widen`: the list is visible
        (wide != NONE).then(|| self.wides.get(wide))
    }

    /// Where the edges of a node lead; of more than four, those to the four most frequent followers.
    pub(crate) fn main_children(&self, id: NodeId) -> impl Iterator<Item = Child> {
        let wide = self.wide(id);
        let listed = wide.map(|wide| {
            let used = wide.top().take(INLINE).filter(|&(count, _)| count > 0);
            used.filter_map(move |(_, token)| Some(self.find(id, token)?.1))
        });
        let inline = (wide.is_none()).then(|| self.inline_edges(id).map(|edge| edge.child));
        let listed = listed.into_iter().flatten();
        listed.chain(inline.into_iter().flatten())
    }

    /// The first few edges of a node.
    fn inline_edges(&self, id: NodeId) -> impl Iterator<Item = Edge> {
        let slots = self.nodes.get(id).edges.iter().map(load);
        slots
            .take_while(|&bits| bits != Edge::EMPTY)
            .map(Edge::from_bits)
    }

    /// All edges of a node, in no particular order.
    pub(crate) fn edges(&self, id: NodeId) -> Vec<Edge> {
        let node = self.nodes.get(id);
        let mut edges: Vec<Edge> = self.inline_edges(id).collect();
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

impl Wide {
    /// The top list as it is now; a hint while somebody indexes.
    fn top(&self) -> impl Iterator<Item = (u64, Token)> {
        (0..TOP).map(|i| self.entry(i))
    }

    fn entry(&self, i: usize) -> (u64, Token) {
        // Acquire: pairs with `set`, so that the token is one that has followed.
        let count = self.counts[i].load(Ordering::Acquire);
        (count, self.tokens[i].load(Ordering::Relaxed)) // one writer; to a reader a hint
    }

    fn set(&self, i: usize, (count, token): (u64, Token)) {
        self.tokens[i].store(token, Ordering::Relaxed); // published by the count
        self.counts[i].store(count, Ordering::Release); // pairs with `entry`
    }

    /// Puts `token` with its new, larger count in its place. A token outside the list can only enter it when its own count
    /// grows, so the list stays exact as long as counts only grow.
    fn raise(&self, token: Token, count: u64) {
        let goes_before =
            |(other_count, other): (u64, Token)| (count, !token) > (other_count, !other);
        let last = self.entry(TOP - 1);
        if !goes_before(last) && last.1 != token {
            return;
        }
        let is_its = |&i: &usize| self.entry(i).0 == 0 || self.entry(i).1 == token;
        let mut i = (0..TOP).find(is_its).unwrap_or(TOP - 1);
        while i > 0 && goes_before(self.entry(i - 1)) {
            self.set(i, self.entry(i - 1));
            i -= 1;
        }
        self.set(i, (count, token));
    }
}
