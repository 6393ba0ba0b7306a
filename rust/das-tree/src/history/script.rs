//! A rollout's text apart from any tree: while it waits for a rebuild, and on its way to and from a file.

use crate::{
    id::{SeqId, Token},
    known::Distribution,
    sync::Arc,
    text::CHUNK,
    tree::Tree,
};

/// Tokens, and in compact form the distributions beside them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Script {
    tokens: Vec<Token>,
    /// Entries of each token's distribution; empty if no token has any.
    sizes: Vec<u8>,
    /// The entries: token << 8 | probability.
    entries: Vec<u32>,
}

impl Script {
    pub(crate) fn new(tokens: Vec<Token>) -> Self {
        Self {
            tokens,
            ..Self::default()
        }
    }

    /// A script from its parts. `None` if they do not fit each other or are out of range.
    pub(crate) fn from_parts(
        tokens: Vec<Token>,
        sizes: Vec<u8>,
        entries: Vec<u32>,
    ) -> Option<Self> {
        let total: usize = sizes.iter().map(|&size| usize::from(size)).sum();
        let fits = (sizes.is_empty() || sizes.len() == tokens.len())
            && sizes
                .iter()
                .all(|&size| usize::from(size) <= crate::known::MAX_ENTRIES)
            && total == entries.len()
            && entries.iter().all(|entry| entry & 0xff != 0);
        fits.then_some(Self {
            tokens,
            sizes,
            entries,
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.tokens.len()
    }

    pub(crate) fn tokens(&self) -> &[Token] {
        &self.tokens
    }

    pub(crate) fn sizes(&self) -> &[u8] {
        &self.sizes
    }

    pub(crate) fn entries(&self) -> &[u32] {
        &self.entries
    }

    pub(crate) fn memory_usage(&self) -> usize {
        size_of::<Self>()
            + 4 * self.tokens.capacity()
            + self.sizes.capacity()
            + 4 * self.entries.capacity()
    }

    /// Notes a distribution beside the last token noted so far, or that it has none.
    fn push_known(&mut self, distribution: &Distribution) {
        self.sizes.push(distribution.len() as u8);
        let entries = distribution
            .tokens()
            .iter()
            .zip(distribution.probabilities());
        self.entries
            .extend(entries.map(|(&token, &probability)| token << 8 | u32::from(probability)));
    }

    /// The distributions beside the tokens, if there are any.
    fn known(&self) -> Option<impl Iterator<Item = Distribution>> {
        let mut from = 0;
        let next = move |&size: &u8| {
            let entries = &self.entries[from..from + usize::from(size)];
            from += usize::from(size);
            Distribution::new(entries.iter().map(|&entry| (entry >> 8, entry as u8)))
        };
        (!self.sizes.is_empty()).then(|| self.sizes.iter().map(next))
    }
}

/// Chunks that so many tokens take, after the start marker.
pub(crate) fn chunks(tokens: usize) -> usize {
    (tokens + 1).div_ceil(CHUNK as usize)
}

/// How many tokens there are to the end of the chunk that the one of this number is in.
fn chunk_end(token: usize) -> usize {
    let chunk = CHUNK as usize;
    (token + 1) / chunk * chunk + chunk - 1
}

impl Tree {
    /// The text of a record, markers left out.
    pub(crate) fn script(&self, id: SeqId) -> Script {
        let mut script = Script::new(self.tokens_of(id));
        if self.text.has_known() {
            for at in self.text.places(id).skip(1).take(script.len()) {
                script.push_known(&self.text.known(at, 0));
            }
            if script.entries.is_empty() {
                script.sizes = Vec::new();
            }
        }
        script
    }

    /// Adds a closed record with this text, each of whose occurrences counts `weight`.
    pub(crate) fn add_script(&self, script: &Script, weight: u64) {
        let id = self
            .open_record(weight)
            .expect("a tree is made of less than what fits");
        self.append_text(id, script.tokens(), script.known())
            .expect("as above");
        self.close_record(id);
    }

    /// Adds closed records with these texts and what each occurrence in them counts. `order` names the one each chunk of the text
    /// is of, the first of each in their own order; end markers may have one more.
    pub(crate) fn add_side_by_side(&self, scripts: &[(Arc<Script>, u64)], order: &[u32]) {
        let mut known: Vec<_> = scripts.iter().map(|(script, _)| script.known()).collect();
        let mut growing: Vec<Option<(SeqId, usize)>> = vec![None; scripts.len()];
        for at in order.iter().map(|&at| at as usize) {
            let (script, weight) = &scripts[at];
            let open = || self.open_record(*weight).expect("as above");
            let (id, from) = growing[at].unwrap_or_else(|| (open(), 0));
            let until = script.len().min(chunk_end(from));
            let known = known[at].as_mut().map(|known| known.take(until - from));
            self.append_text(id, &script.tokens()[from..until], known)
                .expect("as above");
            if until == script.len() {
                self.close_record(id);
            }
            growing[at] = Some((id, until));
        }
    }

    /// The chunks that hold the first tokens, so many, of a record.
    pub(crate) fn chunks_of(&self, id: SeqId, tokens: usize) -> impl Iterator<Item = u32> {
        let first = self.text.record(id).first_chunk();
        let next = move |&chunk: &u32| Some(self.text.next_chunk(chunk));
        std::iter::successors(Some(first), next).take(chunks(tokens))
    }
}
