//! Writing the tree: Ukkonen's algorithm for many texts that grow at once, and the protocol by which exactly one thread at
//! a time runs it while none ever waits. Why it is right is in `DESIGN.md`.

use crate::{
    baton::{FAIR, MUCH},
    id::{Child, Edge, NONE, NodeId, Pos, ROOT, SeqId, Token},
    node::{NewNode, publish},
    sync::{Ordering, fetch},
    text::{Active, CHUNK, Record},
    tree::Tree,
};

/// A place in the tree, seen from a sequence: `along` tokens below `node`, tokens that the sequence itself knows.
#[derive(Clone, Copy)]
struct Point {
    node: NodeId,
    along: u32,
}

/// A token that is being indexed: where it lies.
#[derive(Clone, Copy)]
struct Cursor {
    sequence: SeqId,
    /// Its offset in the sequence, and its position in the text.
    offset: u32,
    position: Pos,
    /// What an occurrence in the sequence counts.
    weight: u64,
}

/// A token that has followed so many others elsewhere, in the problem's texts, is nothing new.
const FAMILIAR: u32 = 5;
/// "No sequence": none has this id, as a tree has fewer chunks.
const NOBODY: SeqId = SeqId::MAX;

/// What a thread has indexed since it came for a sequence.
#[derive(Default)]
struct Shift {
    own: SeqId,
    others: u32,
}

impl Shift {
    /// Notes tokens of a sequence; whether those of others are more than a fair share by now.
    fn is_over(&mut self, id: SeqId, tokens: u32) -> bool {
        self.others += if id == self.own { 0 } else { tokens };
        self.others >= FAIR
    }
}

/// Handing over work. `queue` is a stack of sequences with published tokens to index; `work` counts submissions not yet
/// dealt with. Who raises `work` from zero indexes until it is zero again, or gives the index to another thread by way of
/// `baton`; everyone else leaves at once.
impl Tree {
    /// Sees to it that all published tokens of `id` get indexed: by this thread, or by the one that is at it.
    pub(crate) fn submit(&self, id: SeqId) {
        let record = self.text.record(id);
        // AcqRel: whoever takes the sequence off the queue later reads this flag's change, hence the tokens before it.
        if !record.queued.swap(true, Ordering::AcqRel) {
            self.push_queue(id, record);
        }
        // AcqRel: receives all that the previous indexer wrote, and hands over the push before it.
        if self.work.fetch_add(1, Ordering::AcqRel) == 0 {
            self.index_pending(id, 1);
        } else {
            let pending = record.len().saturating_sub(record.active().indexed);
            if self.baton.take(pending >= MUCH) {
                self.index_pending(id, 0);
            }
        }
    }

    /// Runs `task` with the index at rest if nobody is indexing, then indexes what is pending. Returns whether it ran.
    pub(crate) fn run(&self, task: impl FnOnce()) -> bool {
        // AcqRel: as in `submit`.
        if self.work.fetch_add(1, Ordering::AcqRel) != 0 || !self.drain(&mut Shift::default()) {
            return false;
        }
        task();
        self.index_pending(NOBODY, 1);
        true
    }

    /// Indexes until there is nothing left or another thread takes over. `seen` is how much of `work` this thread knows of,
    /// `id` the sequence it came for.
    fn index_pending(&self, id: SeqId, mut seen: u32) {
        let mut shift = Shift { own: id, others: 0 };
        while self.drain(&mut shift) {
            // AcqRel: hands the index to the next thread that finds zero; receives the pushes of those that came meanwhile.
            let before = self.work.fetch_sub(seen, Ordering::AcqRel);
            if before == seen {
                return;
            }
            seen = before - seen;
        }
    }

    fn push_queue(&self, id: SeqId, record: &Record) {
        let mut head = self.queue.load(Ordering::Relaxed); // checked by the exchange
        loop {
            record.next_queued.store(head, Ordering::Relaxed); // published by the exchange
            // Release: publishes `next_queued`; pairs with the swap in `drain`.
            match self.queue.compare_exchange_weak(
                head,
                id + 1,
                Ordering::Release,
                Ordering::Relaxed,
            ) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    /// Indexes all that is queued; false if another thread has taken over.
    fn drain(&self, shift: &mut Shift) -> bool {
        loop {
            let mut next = self.queue.swap(NONE, Ordering::Acquire); // pairs with `push_queue`
            if next == NONE {
                return true;
            }
            while next != NONE {
                let record = self.text.record(next - 1);
                let after = record.next_queued.load(Ordering::Relaxed); // read before the sequence may be queued anew
                if self.baton.is_offered() {
                    self.push_queue(next - 1, record);
                } else {
                    self.index_sequence(next - 1, record, shift);
                }
                next = after;
            }
            if self.baton.is_offered() && self.baton.give() {
                return false;
            }
        }
    }

    /// Indexes what a sequence has published, or some of it if another thread offers to take over.
    fn index_sequence(&self, id: SeqId, record: &Record, shift: &mut Shift) {
        // AcqRel: an appender that found the flag set has its tokens seen below; one that finds it clear queues anew.
        record.queued.swap(false, Ordering::AcqRel);
        let len = record.len();
        let Active {
            mut indexed,
            node,
            along,
        } = record.active();
        let mut point = Point { node, along };
        let mut chunk = record.index_chunk.load(Ordering::Relaxed); // only whoever indexes uses it
        let weight = record.weight();
        let start = indexed;
        while indexed < len && !self.baton.is_offered() {
            if indexed % CHUNK == 0 {
                chunk = if indexed == 0 {
                    record.first_chunk()
                } else {
                    self.text.next_chunk(chunk)
                };
            }
            let cursor = Cursor {
                sequence: id,
                offset: indexed,
                position: chunk * CHUNK + indexed % CHUNK,
                weight,
            };
            point = self.index_token(cursor, point);
            if self.nodes.get(point.node).depth() + point.along <= FAMILIAR {
                self.text.mark_new(cursor.position);
            }
            indexed += 1;
            record.set_active(Active {
                indexed,
                node: point.node,
                along: point.along,
            });
        }
        record.index_chunk.store(chunk, Ordering::Relaxed); // only whoever indexes uses it
        // AcqRel: as in `submit`.
        if indexed < len && !record.queued.swap(true, Ordering::AcqRel) {
            self.push_queue(id, record);
        }
        if shift.is_over(id, indexed - start) {
            self.baton.ask();
        }
    }
}

/// Ukkonen's algorithm.
impl Tree {
    /// Extends the tree by one token of a sequence whose active point is `at`; returns the new active point.
    fn index_token(&self, cursor: Cursor, mut at: Point) -> Point {
        let token = self.text.token(cursor.position, 0);
        let mut unlinked = NONE; // the node made last, whose link leads to where the next suffix ends
        loop {
            let above = self.nodes.get(at.node).depth();
            if at.along == 0 {
                if unlinked != NONE {
                    self.nodes.get(unlinked).set_link(at.node);
                    unlinked = NONE;
                }
                if self.nodes.find(at.node, token).is_some() {
                    at.along = 1;
                    break;
                }
                let start = self.text.back(cursor.position, above);
                self.add_leaf(at.node, token, start, cursor.weight);
                self.count_up(at.node, start, cursor.weight);
                if at.node == ROOT {
                    break;
                }
                at.node = self.nodes.get(at.node).link();
                continue;
            }
            let first = self
                .text
                .token(self.text.back(cursor.position, at.along), 0);
            let (slot, child) = self
                .nodes
                .find(at.node, first)
                .expect("an active point is in the tree");
            let depth = above + at.along;
            let next = match child {
                Child::Leaf(start) => {
                    let (owner, offset) = self.text.owner(start);
                    let end = self.leaf_end(owner, cursor);
                    if offset + depth >= end {
                        let taken = self.text.back(cursor.position, depth);
                        publish(
                            slot,
                            Edge {
                                token: first,
                                child: Child::Leaf(taken),
                            },
                        );
                        self.reweigh(at, first, owner, taken, cursor.weight);
                        self.reopen(owner, at, depth);
                        at = self.shorten(at);
                        continue;
                    }
                    self.text.token(start, depth)
                }
                Child::Node(id) => {
                    let node = self.nodes.get(id);
                    if depth >= node.depth() {
                        at = Point {
                            node: id,
                            along: depth - node.depth(),
                        };
                        continue;
                    }
                    self.text.token(node.position(), depth)
                }
            };
            if next == token {
                at.along += 1;
                break;
            }
            let start = self.text.back(cursor.position, depth);
            let fresh = self.split(at, next, child);
            self.add_leaf(fresh, token, start, cursor.weight);
            publish(
                slot,
                Edge {
                    token: first,
                    child: Child::Node(fresh),
                },
            );
            self.count_up(fresh, start, cursor.weight);
            if unlinked != NONE {
                self.nodes.get(unlinked).set_link(fresh);
            }
            unlinked = fresh;
            at = self.shorten(at);
        }
        while self.nodes.get(at.node).depth() + at.along >= self.max_depth {
            self.count_at_cap(cursor, at);
            at = self.shorten(at);
        }
        at
    }

    fn add_leaf(&self, node: NodeId, token: Token, start: Pos, weight: u64) {
        let child = Child::Leaf(start);
        let edge = Edge { token, child };
        self.nodes
            .insert(node, edge, weight, &self.text, &self.meter);
    }

    /// Where the text of a leaf ends for the indexer: before what its owner has not indexed yet.
    fn leaf_end(&self, owner: SeqId, cursor: Cursor) -> u32 {
        if owner == cursor.sequence {
            cursor.offset + 1
        } else {
            self.text.record(owner).active().indexed
        }
    }

    /// After a leaf of `owner` was taken over at `at`: that suffix of `owner` is matched by another text now.
    fn reopen(&self, owner: SeqId, at: Point, depth: u32) {
        let record = self.text.record(owner);
        let active = record.active();
        if self.nodes.get(active.node).depth() + active.along < depth {
            record.set_active(Active {
                indexed: active.indexed,
                node: at.node,
                along: at.along,
            });
        }
    }

    /// After the leaf of `owner` below `at` was taken over by the suffix that starts at `taken`: that one is counted instead.
    fn reweigh(&self, at: Point, first: Token, owner: SeqId, taken: Pos, weight: u64) {
        let before = self.text.record(owner).weight();
        if weight == before {
            self.note_up(at.node, taken);
            return;
        }
        if weight > before {
            let node = self.nodes.get(at.node);
            self.nodes.raise(node, || first, weight);
            self.count_up(at.node, taken, weight - before);
            return;
        }
        // Counts fall: rare enough to make the lists on the way anew.
        let mut id = at.node;
        loop {
            let node = self.nodes.get(id);
            node.add_occurrence(taken, weight.wrapping_sub(before));
            self.nodes.relist(id, &self.text);
            if id == ROOT {
                return;
            }
            id = node.parent();
        }
    }

    /// A node on the edge from `at.node` to `child`, complete but for its second edge and the occurrence that goes there, and not
    /// yet reachable.
    fn split(&self, at: Point, next: Token, child: Child) -> NodeId {
        let count = self.nodes.child_count(child, &self.text);
        let (first, last) = match child {
            Child::Leaf(start) => (start, start),
            Child::Node(node) => {
                let node = self.nodes.get(node);
                (node.position(), node.recent())
            }
        };
        let above = self.nodes.get(at.node).depth();
        let depth = above + at.along;
        let new = NewNode {
            position: first,
            depth,
            parent: at.node,
            above,
            count,
            recent: last,
        };
        let fresh = self.nodes.add(&new, &self.meter);
        let edge = Edge { token: next, child };
        self.nodes
            .insert(fresh, edge, count, &self.text, &self.meter);
        if let Child::Node(node) = child {
            self.nodes.get(node).move_below(fresh, depth);
        }
        fresh
    }

    /// Counts the occurrence of a string as long as the cap, which ends at the cursor; gives it a node if it has none.
    fn count_at_cap(&self, cursor: Cursor, mut at: Point) {
        let start = self.text.back(cursor.position, self.max_depth - 1);
        let node = loop {
            let first = self
                .text
                .token(self.text.back(cursor.position, at.along - 1), 0);
            let (slot, child) = self
                .nodes
                .find(at.node, first)
                .expect("an active point is in the tree");
            match child {
                Child::Leaf(position) => {
                    let new = NewNode {
                        position,
                        depth: self.max_depth,
                        parent: at.node,
                        above: self.nodes.get(at.node).depth(),
                        count: self.text.weight(position),
                        recent: position,
                    };
                    let fresh = self.nodes.add(&new, &self.meter);
                    publish(
                        slot,
                        Edge {
                            token: first,
                            child: Child::Node(fresh),
                        },
                    );
                    break fresh;
                }
                Child::Node(node) => {
                    let length = self.nodes.get(node).depth() - self.nodes.get(at.node).depth();
                    if length == at.along {
                        break node;
                    }
                    at = Point {
                        node,
                        along: at.along - length,
                    };
                }
            }
        };
        self.count_up(node, start, cursor.weight);
    }

    /// Counts an occurrence, starting at `start`, of a node's string and of all its prefixes.
    fn count_up(&self, mut id: NodeId, start: Pos, gain: u64) {
        let mut node = self.nodes.get(id);
        loop {
            // Where the next shorter suffix will be counted.
            fetch(self.nodes.get(node.link()));
            node.add_occurrence(start, gain);
            if id == ROOT {
                return;
            }
            let count = node.count();
            id = node.parent();
            node = self.nodes.get(id);
            // The occurrence goes by the same edges, so its own text, which is in cache, has their first tokens.
            let first = || self.text.token(start, node.depth());
            self.nodes.raise(node, first, count);
        }
    }

    /// Notes an occurrence, starting at `start`, of a node's string and of all its prefixes that is counted in the place of
    /// another.
    fn note_up(&self, mut id: NodeId, start: Pos) {
        while self.nodes.get(id).note(start) && id != ROOT {
            id = self.nodes.get(id).parent();
        }
    }

    /// The place of the same string without its first token.
    fn shorten(&self, at: Point) -> Point {
        if at.node == ROOT {
            Point {
                node: ROOT,
                along: at.along - 1,
            }
        } else {
            Point {
                node: self.nodes.get(at.node).link(),
                along: at.along,
            }
        }
    }
}
