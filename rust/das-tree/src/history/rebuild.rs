//! A problem's next tree, made from the texts of the rollouts that stay: in the background, or by whoever needs it first.

use crate::{
    history::script::Script,
    id::SeqId,
    meter::Ledger,
    sync::{Arc, Deferred, Mutex, lock},
    tree::{Lore, Tree},
};

/// A tree to be made, or made already.
#[derive(Debug)]
pub(crate) struct Rebuild {
    max_depth: usize,
    unit: u64,
    ledger: Arc<Ledger>,
    lore: Lore,
    /// What goes into it; given up as soon as it is made.
    material: Mutex<Material>,
    tree: Deferred<Arc<Tree>>,
    /// Output tokens it has.
    pub(crate) tokens: usize,
    /// Bytes set aside for it until it is put to use.
    pub(crate) reserved: usize,
}

/// The texts of a tree.
#[derive(Debug, Default)]
pub(crate) struct Material {
    /// In the order in which they began.
    pub(crate) sources: Vec<Source>,
    /// If they grew side by side: which of them each chunk of the tree's text is of. If not, one comes after the other.
    pub(crate) order: Vec<u32>,
}

/// A closed rollout and what each of its occurrences is to count.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) text: SourceText,
    pub(crate) weight: u64,
}

/// Where the text of a closed rollout is.
#[derive(Clone, Debug)]
pub(crate) enum SourceText {
    Tree(Arc<Tree>, SeqId),
    Script(Arc<Script>),
}

impl Material {
    /// Number of tokens.
    pub(crate) fn tokens(&self) -> usize {
        self.sources.iter().map(|source| source.text.len()).sum()
    }
}

impl SourceText {
    /// Number of tokens.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Tree(tree, id) => tree.tokens_in(*id),
            Self::Script(script) => script.len(),
        }
    }

    /// The text, read out of its tree if need be.
    pub(crate) fn script(&self) -> Arc<Script> {
        match self {
            Self::Tree(tree, id) => Arc::new(tree.script(*id)),
            Self::Script(script) => Arc::clone(script),
        }
    }
}

impl Rebuild {
    pub(crate) fn new(
        max_depth: usize,
        unit: u64,
        ledger: &Arc<Ledger>,
        lore: Lore,
        material: Material,
        reserved: usize,
    ) -> Self {
        let tokens = material.tokens();
        Self {
            max_depth,
            unit,
            ledger: Arc::clone(ledger),
            lore,
            material: Mutex::new(material),
            tree: Deferred::new(),
            tokens,
            reserved,
        }
    }

    /// The tree if it is there.
    pub(crate) fn finished(&self) -> Option<&Arc<Tree>> {
        self.tree.get()
    }

    /// The tree, made now if nobody has, waited for if somebody is at it.
    pub(crate) fn finish(&self) {
        self.tree.make(|| self.build());
    }

    fn build(&self) -> Arc<Tree> {
        let tree = Tree::in_history(self.max_depth, self.unit, &self.ledger, self.lore.clone());
        let Material { sources, order } = std::mem::take(&mut *lock(&self.material));
        if order.is_empty() {
            for source in sources {
                tree.add_script(&source.text.script(), source.weight);
            }
        } else {
            let script = |source: &Source| (source.text.script(), source.weight);
            let scripts: Vec<_> = sources.iter().map(script).collect();
            tree.add_side_by_side(&scripts, &order);
        }
        tree
    }
}
