//! What layers do to each other, and what is said about keys and values that are wrong.

use serde::Deserialize;

use super::*;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Role {
    node: Node,
    network: Network,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Node {
    number: u16,
    cluster: String,
    peers: Vec<String>,
    bootstrap: bool,
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Network {
    listen: String,
    advertise: Option<String>,
}

impl Settings for Role {
    fn range(key: &str) -> Option<String> {
        (key == "node.number").then(|| "1 to 65535".to_owned())
    }
}

impl Default for Role {
    fn default() -> Self {
        Self { node: Node::default(), network: Network { listen: "127.0.0.1:8081".into(), advertise: None } }
    }
}

impl Default for Node {
    fn default() -> Self {
        Self { number: 1, cluster: "quorate".into(), peers: Vec::new(), bootstrap: false }
    }
}

fn variables(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn of_file(text: &str) -> Result<Loaded<Role>, Failure> {
    let mut layers = Layers::of::<Role>();
    layers.file("broker.toml".into(), text)?;
    layers.load()
}

#[test]
fn a_flag_beats_a_variable_beats_the_file_beats_the_default() {
    let mut layers = Layers::of::<Role>();
    let text = "[node]\nnumber = 2\ncluster = \"east\"\npeers = [\"1@a:1\"]\n\n[network]\nlisten = \"10.0.0.1:1\"\n";
    layers.file("broker.toml".into(), text).unwrap();
    layers
        .variables(variables(&[("QUORATE_NODE_NUMBER", "3"), ("QUORATE_NODE_CLUSTER", "2026"), ("HOME", "/")]))
        .unwrap();
    layers.flag("--node", "node.number", Some("4"));
    layers.flag("--cluster", "node.cluster", None::<String>);
    layers.switch("--bootstrap", "node.bootstrap", true);
    let loaded: Loaded<Role> = layers.load().unwrap();
    let node = Node { number: 4, cluster: "2026".into(), peers: vec!["1@a:1".into()], bootstrap: true };
    assert_eq!(loaded.settings.node, node);
    let origins = ["node.number", "node.cluster", "network.listen", "network.advertise"]
        .map(|key| loaded.origin(key).to_string());
    assert_eq!(origins, ["--node", "QUORATE_NODE_CLUSTER", "broker.toml:7", "default"]);
}

#[test]
fn every_setting_is_printed_with_its_origin() {
    let loaded = of_file("[node]\ncluster = \"east\"").unwrap();
    let printed = loaded.print();
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!(lines.len(), 6);
    assert!(lines[3].starts_with("node.cluster = \"east\"") && lines[3].ends_with("# broker.toml:2"), "{printed}");
    assert!(lines[0].starts_with("# network.advertise is not set"), "{printed}");
    assert_eq!(loaded.print_changed().collect::<Vec<_>>(), ["node.cluster = \"east\" (broker.toml:2)"]);
}

#[test]
fn what_is_printed_can_be_read_back() {
    let loaded = of_file("[node]\ncluster = \"east\"\npeers = [\"1@a:1\", \"2@b:2\"]").unwrap();
    assert_eq!(of_file(&loaded.print()).unwrap().settings, loaded.settings);
}

#[test]
fn an_unknown_key_is_refused_with_the_nearest_one() {
    let said = |text: &str| of_file(text).unwrap_err().to_string();
    let wrong = said("[node]\nnumber = 1\nclutser = \"east\"");
    assert!(wrong.contains("broker.toml:3") && wrong.contains("did you mean node.cluster?"), "{wrong}");
    let misplaced = said("listen = \"a:1\"");
    assert!(misplaced.contains("did you mean network.listen?"), "{misplaced}");
    assert!(said("[zoo]\nelephants = 3").contains("no key is like it"));
    assert!(said("node = 3").contains("node is not a setting"));

    let mut layers = Layers::of::<Role>();
    let wrong = layers.variables(variables(&[("QUORATE_NODE_NUMBR", "3")])).unwrap_err().to_string();
    assert!(wrong.contains("did you mean QUORATE_NODE_NUMBER?"), "{wrong}");
}

#[test]
fn a_value_that_does_not_fit_is_refused_with_its_place() {
    let wrong = of_file("[node]\nnumber = \"two\"").unwrap_err().to_string();
    assert!(wrong.contains("node.number cannot be \"two\"") && wrong.contains("broker.toml:2"), "{wrong}");
    for number in ["70000", "-1", "1.5", "99999999999999999999999", "true"] {
        let wrong = of_file(&format!("[node]\nnumber = {number}")).unwrap_err().to_string();
        assert!(wrong.contains("node.number cannot be ") && wrong.contains("1 to 65535"), "{wrong}");
        assert!(!wrong.contains("u16"), "{wrong}");
    }
    let wrong = of_file("[node\nnumber = 1").unwrap_err().to_string();
    assert!(wrong.contains("broker.toml:1 is not TOML"), "{wrong}");
    let mut layers = Layers::of::<Role>();
    layers.variables(variables(&[("QUORATE_NODE_BOOTSTRAP", "maybe")])).unwrap();
    assert!(layers.load::<Role>().unwrap_err().to_string().contains("QUORATE_NODE_BOOTSTRAP"));
}

#[test]
fn lists_in_variables_and_flags_are_separated_like_addresses() {
    let mut layers = Layers::of::<Role>();
    layers.flag("--peers", "node.peers", Some("1@a:1; 2@b:2,3@c:3"));
    assert_eq!(layers.load::<Role>().unwrap().settings.node.peers, ["1@a:1", "2@b:2", "3@c:3"]);
}

#[test]
fn variables_that_kubernetes_makes_of_a_service_are_let_pass() {
    let mut layers = Layers::of::<Role>();
    let made = [
        "QUORATE_SERVICE_HOST",
        "QUORATE_SERVICE_PORT_GRPC",
        "QUORATE_PORT",
        "QUORATE_PORT_8081_TCP_ADDR",
        "QUORATE_ENDPOINTS",
    ];
    layers.variables(made.map(|name| (name.to_owned(), "x".to_owned()))).unwrap();
    assert_eq!(layers.load::<Role>().unwrap().print_changed().count(), 0);
}
