//! Re-derives everything a tree claims from its text.

use std::collections::HashSet;

use crate::{
    id::{Child, NodeId, ROOT, SeqId, Token},
    node::TOP,
    text::{Active, CHUNK},
    tree::Tree,
};

impl Tree {
    /// Checks the whole structure against the text, while indexing is at rest (tokens appended meanwhile wait for the
    /// end of the check to be indexed). Meant for tests: takes time proportional to tokens times depth.
    ///
    /// # Errors
    /// A description of the first violation found.
    pub fn check_integrity(&self) -> Result<(), String> {
        let mut outcome = Ok(());
        while !self.run(|| outcome = self.check()) {
            std::thread::yield_now();
        }
        outcome
    }

    fn check(&self) -> Result<(), String> {
        let mut reached = 0;
        let mut leaves = HashSet::new();
        self.check_node(ROOT, &mut reached, &mut leaves)?;
        if reached != self.nodes.len() {
            return Err(format!(
                "{} nodes exist and {reached} can be reached",
                self.nodes.len()
            ));
        }
        let mut counted = 0u64;
        for id in 0..self.text.sequences() {
            let suffixes = self.check_sequence(id, &mut leaves)?;
            counted += u64::from(suffixes) * self.text.record(id).weight();
        }
        if let Some(start) = leaves.iter().next() {
            return Err(format!("the leaf at {start} is no counted suffix"));
        }
        let total = self.nodes.get(ROOT).count();
        if total != counted {
            return Err(format!(
                "the root counts {total} where its suffixes weigh {counted}"
            ));
        }
        Ok(())
    }

    fn check_node(
        &self,
        id: NodeId,
        reached: &mut u32,
        leaves: &mut HashSet<u32>,
    ) -> Result<(), String> {
        *reached += 1;
        let node = self.nodes.get(id);
        let (depth, edges) = (node.depth(), self.nodes.edges(id));
        let string = self.string(id);
        let fail = |what: &str| Err(format!("node {id} ({string:?}): {what}"));
        if edges.len() != node.degree() as usize {
            return fail("degree differs from the number of edges");
        }
        if id != ROOT && depth < self.max_depth && edges.len() < 2 {
            return fail("an internal node must branch");
        }
        if depth == self.max_depth && !edges.is_empty() {
            return fail("no edges below the depth cap");
        }
        if id != ROOT && depth < self.max_depth && self.string(node.link()) != string[1..] {
            return fail("the suffix link leads elsewhere");
        }
        if self.text_at(node.recent(), depth) != string {
            return fail("the recent occurrence is none");
        }
        let (mut first, mut last) = (u32::MAX, 0);
        let mut sum = 0;
        let mut followers = Vec::new();
        for edge in &edges {
            let count = self.nodes.child_count(edge.child, &self.text);
            sum += count;
            followers.push((std::cmp::Reverse(count), edge.token));
            let start = match edge.child {
                Child::Leaf(start) => {
                    if !leaves.insert(start) {
                        return fail("two edges lead to one leaf");
                    }
                    (first, last) = (first.min(start), last.max(start));
                    start
                }
                Child::Node(child) => {
                    let below = self.nodes.get(child);
                    if below.above() != (id, depth) || below.depth() <= depth {
                        return fail("a child does not agree to be one");
                    }
                    self.check_node(child, reached, leaves)?;
                    (first, last) = (first.min(below.position()), last.max(below.recent()));
                    below.position()
                }
            };
            if self.text_at(start, depth + 1) != [string.as_slice(), &[edge.token]].concat() {
                return fail("an edge's label does not continue the node's string");
            }
            if self.nodes.find(id, edge.token).map(|(_, child)| child) != Some(edge.child) {
                return fail("an edge is not found by its token");
            }
        }
        if depth < self.max_depth && sum != node.count() {
            return fail("the count is not the sum of the followers'");
        }
        if !edges.is_empty() && (node.position() > first || node.recent() < last) {
            return fail("an occurrence of a follower comes before the first or after the last");
        }
        followers.sort_unstable();
        followers.truncate(TOP.max(4));
        let mut listed = Vec::new();
        self.nodes.followers(id, &self.text, &mut listed);
        let mut listed: Vec<_> = listed
            .into_iter()
            .map(|(token, count)| (std::cmp::Reverse(count), token))
            .collect();
        listed.sort_unstable();
        if listed != followers {
            return fail("the top followers are others");
        }
        Ok(())
    }

    /// Checks that a sequence's counted suffixes, and no others, are leaves or were counted at the cap; returns their number.
    fn check_sequence(&self, id: SeqId, leaves: &mut HashSet<u32>) -> Result<u32, String> {
        let record = self.text.record(id);
        let Active {
            indexed,
            node,
            along,
        } = record.active();
        if indexed != record.len() {
            return Err(format!(
                "sequence {id}: {indexed} of {} tokens are indexed",
                record.len()
            ));
        }
        let depth = self.nodes.get(node).depth() + along;
        let symbols = self.text.symbols(id, 0);
        let open = &symbols[(indexed - depth) as usize..];
        let in_tree = |string: &[Token]| self.locate(string).is_some();
        if depth >= self.max_depth || !in_tree(open) {
            return Err(format!(
                "sequence {id}: the active point is not in the tree"
            ));
        }
        let counted = indexed - depth;
        let mut chunk = record.first_chunk();
        for start in 0..indexed {
            if start > 0 && start % CHUNK == 0 {
                chunk = self.text.next_chunk(chunk);
            }
            let leaf = leaves.remove(&(chunk * CHUNK + start % CHUNK));
            let stop = symbols.len().min((start + self.max_depth) as usize);
            let string = &symbols[start as usize..stop];
            if !in_tree(string) {
                return Err(format!(
                    "sequence {id}: the suffix at {start} is not in the tree"
                ));
            }
            if leaf && start >= counted {
                return Err(format!(
                    "sequence {id}: the open suffix at {start} has a leaf"
                ));
            }
            if !leaf && start < counted && string.len() < self.max_depth as usize {
                return Err(format!("sequence {id}: the suffix at {start} has no leaf"));
            }
        }
        Ok(counted)
    }

    fn string(&self, id: NodeId) -> Vec<Token> {
        let node = self.nodes.get(id);
        self.text_at(node.position(), node.depth())
    }

    fn text_at(&self, start: u32, length: u32) -> Vec<Token> {
        (0..length).map(|i| self.text.token(start, i)).collect()
    }
}
