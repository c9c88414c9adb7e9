//! Where clients find one node: an address per listener, and the text in which nodes tell each other. Pure.

use std::{collections::BTreeMap, fmt, sync::Arc};

/// The name of a listener; `None` is the one that every node has.
pub(crate) type ListenerName = Option<Arc<str>>;

/// The advertised addresses of one node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Addresses {
    /// Of the listener that every node has.
    pub own: String,
    /// Of the others, by name.
    pub named: BTreeMap<Arc<str>, String>,
}

impl Addresses {
    /// Reads what [`fmt::Display`] writes: the address of the default listener, then `;name=address` for each other. A part that cannot
    /// be read is one of a later version, and left out.
    pub fn parse(text: &str) -> Self {
        let mut parts = text.split(';');
        let own = parts.next().unwrap_or_default().to_owned();
        let named = parts.filter_map(|part| part.split_once('='));
        Self { own, named: named.map(|(name, address)| (Arc::from(name), address.to_owned())).collect() }
    }

    /// The address for clients of a listener, if the node has it.
    pub fn of(&self, listener: &ListenerName) -> Option<&String> {
        match listener {
            None => Some(&self.own),
            Some(name) => self.named.get(name),
        }
    }
}

impl fmt::Display for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.own)?;
        self.named.iter().try_for_each(|(name, address)| write!(f, ";{name}={address}"))
    }
}

/// The addresses of the live nodes by listener, in the order of routes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Lists {
    own: Arc<[String]>,
    named: BTreeMap<Arc<str>, Arc<[String]>>,
}

impl Lists {
    /// A list for every listener that some node has; a node stands in those of its own listeners.
    pub fn of(nodes: &[&Addresses]) -> Self {
        let list = |listener: &ListenerName| nodes.iter().filter_map(|node| node.of(listener)).cloned().collect();
        let names = nodes.iter().flat_map(|node| node.named.keys()).cloned();
        Self { own: list(&None), named: names.map(|name| (name.clone(), list(&Some(name)))).collect() }
    }

    /// The same, where a list that would be empty stays as it was: somebody came in by that listener, so it is there.
    pub fn or_as_before(mut self, before: &Self) -> Self {
        if self.own.is_empty() {
            self.own = before.own.clone();
        }
        for (name, list) in &before.named {
            self.named.entry(name.clone()).or_insert_with(|| list.clone());
        }
        self
    }

    /// The list for clients of a listener. A name that no node has is answered with the default listener's.
    pub fn list(&self, listener: &ListenerName) -> Arc<[String]> {
        let named = listener.as_ref().and_then(|name| self.named.get(name));
        named.unwrap_or(&self.own).clone()
    }

    /// The named lists.
    pub fn named(&self) -> impl Iterator<Item = (&str, &[String])> {
        self.named.iter().map(|(name, list)| (&**name, &**list))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lists(nodes: &[&str]) -> Lists {
        let nodes: Vec<Addresses> = nodes.iter().map(|text| Addresses::parse(text)).collect();
        Lists::of(&nodes.iter().collect::<Vec<_>>())
    }

    fn host() -> ListenerName {
        Some(Arc::from("host"))
    }

    #[test]
    fn addresses_are_told_in_one_text_that_begins_as_it_did_before_there_were_names() {
        for text in ["10.0.0.1:8081", "10.0.0.1:8081;host=127.0.0.1:8081;vpn=[fd00::1]:8081", ""] {
            assert_eq!(Addresses::parse(text).to_string(), text);
        }
        let two = Addresses::parse("10.0.0.1:8081;what is this;host=127.0.0.1:8081");
        assert_eq!((two.of(&None).map(String::as_str), two.named.len()), (Some("10.0.0.1:8081"), 1));
        assert_eq!(two.of(&host()).map(String::as_str), Some("127.0.0.1:8081"));
    }

    #[test]
    fn each_listener_has_the_nodes_that_have_it_in_the_same_order() {
        let lists = lists(&["n2:1;host=h:2", "n1:1", "n3:1;host=h:3"]);
        assert_eq!(*lists.list(&None), ["n2:1", "n1:1", "n3:1"]);
        assert_eq!(*lists.list(&host()), ["h:2", "h:3"]);
        assert_eq!(*lists.list(&Some(Arc::from("vpn"))), ["n2:1", "n1:1", "n3:1"], "nobody has it");
    }

    #[test]
    fn a_list_that_would_be_empty_stays_as_it_was() {
        let before = lists(&["n1:1;host=h:1"]);
        let now = lists(&["n2:1"]).or_as_before(&before);
        assert_eq!((&*now.list(&None), &*now.list(&host())), (&["n2:1".to_owned()][..], &["h:1".to_owned()][..]));
        assert_eq!(lists(&[]).or_as_before(&before), before);
    }
}
