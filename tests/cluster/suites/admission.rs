//! Who may publish a key. The rule is that only the agent on a node writes that node's hauberk
//! annotations, and writes nothing else on the Node. It is tested on a real API server, for every
//! kind of user that might get around it.

use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result, ensure};
use hauberk_cluster::{Context, ControlPlane, Kubectl, Options, Test};
use hauberk_netns::wait;
use serde_json::{Value, json};

use crate::chart;

pub const TESTS: &[Test] = &[
    Test::new("admission::a_nodes_own_agent_publishes_its_keys", own_agent),
    Test::new("admission::nobody_else_writes_a_nodes_annotations", nobody_else),
    Test::new("admission::nodes_are_not_created_with_keys", creation),
    Test::new("admission::agents_change_nothing_else", nothing_else),
    Test::new("admission::agents_may_do_no_more_than_they_do", least_privilege),
];

const ACCOUNT: &str = "hauberk-system/hauberk";
const AGENT: &str = "system:serviceaccount:hauberk-system:hauberk";
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
const EVERYBODY: &str = "ValidatingAdmissionPolicy 'hauberk-node-annotations'";
const AGENTS: &str = "ValidatingAdmissionPolicy 'hauberk-agent'";

/// Nodes n1 and n2 with an agent's pod on each, and the users that try to write.
struct World {
    control_plane: ControlPlane,
    /// With the token of the agent's pod on n1; `agent2` likewise on n2.
    agent1: Kubectl,
    agent2: Kubectl,
    /// With a token of the agents' account that is bound to no pod or node.
    unbound: Kubectl,
}

/// The suite's tests run one after the other in one process, on one API server.
static WORLD: Mutex<Option<World>> = Mutex::new(None);

fn with_world(context: &Context, test: impl FnOnce(&World) -> Result<()>) -> Result<()> {
    let mut world = WORLD.lock().unwrap_or_else(PoisonError::into_inner);
    if world.is_none() {
        *world = Some(World::create(context)?);
    }
    test(world.as_ref().context("made above")?)
}

impl World {
    fn create(context: &Context) -> Result<World> {
        let options = Options { users: vec![("operator".into(), Vec::new())], ..Options::default() };
        let control_plane = ControlPlane::start(&context.directory, &options)?;
        let admin = &control_plane.kubectl;
        chart::install(admin, &[])?;
        for (node, range) in [("n1", "10.244.1.0/24"), ("n2", "10.244.2.0/24")] {
            admin.apply(&node_object(node, range))?;
            admin.apply(&agent_pod(node))?;
        }
        // A user that manages nodes, as cloud controllers and autoscalers do.
        admin.apply(
            &json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "operator"},
                "rules": [{"apiGroups": [""], "resources": ["nodes", "nodes/status"], "verbs": ["*"]}]})
            .to_string(),
        )?;
        admin.run(&["create", "clusterrolebinding", "operator", "--clusterrole=operator", "--user=operator"])?;
        let agent = |node: &str| {
            let pod = format!("agent-{node}");
            let object: Value = admin.get(&["pod", "-n", chart::NAMESPACE, &pod])?;
            let uid = object["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
            let bound = ["--bound-object-kind=Pod", "--bound-object-name", &pod, "--bound-object-uid", &uid];
            let token = admin.run(&[&["create", "token", "hauberk", "-n", chart::NAMESPACE][..], &bound].concat())?;
            admin.with_token(&pod, token.trim())
        };
        let (agent1, agent2) = (agent("n1")?, agent("n2")?);
        let unbound = admin.with_token("unbound", &admin.token(ACCOUNT, None)?)?;
        // The API server needs a moment until new policies are in force; both are checked.
        wait::eventually("the policies to be in force", || {
            let key = admin.answer(&["annotate", "node", "n1", "hauberk.io/probe=x", "--dry-run=server"], "")?;
            let label = agent1.answer(&["label", "node", "n1", "probe=x", "--dry-run=server"], "")?;
            Ok((key.stderr.contains(EVERYBODY) && label.stderr.contains(AGENTS)).then_some(()))
        })?;
        Ok(World { control_plane, agent1, agent2, unbound })
    }

    fn admin(&self) -> &Kubectl {
        &self.control_plane.kubectl
    }

    fn keys(&self) -> Result<Value> {
        Ok(self.admin().get::<Value>(&["node", "n1"])?["metadata"]["annotations"]["hauberk.io/keys"].clone())
    }

    /// Publishes this key on n1, whatever was published before.
    fn publish(&self, key: &str) -> Result<()> {
        self.agent1.run(&["annotate", "--overwrite", "node", "n1", &format!("hauberk.io/keys={key}")])?;
        Ok(())
    }
}

fn node_object(name: &str, range: &str) -> String {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "spec": {"podCIDR": range, "podCIDRs": [range], "taints": [
        {"key": "hauberk.io/agent-not-ready", "effect": "NoSchedule"}, {"key": "example.com/other", "effect": "NoSchedule"}]}})
    .to_string()
}

fn agent_pod(node: &str) -> String {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("agent-{node}"), "namespace": chart::NAMESPACE},
        "spec": {"nodeName": node, "serviceAccountName": "hauberk", "containers": [{"name": "agent", "image": "example.com/none"}]}})
    .to_string()
}

fn own_agent(context: &Context) -> Result<()> {
    with_world(context, |world| {
        let admin = world.admin();
        // With a pod's token, and with one that is bound to the Node itself.
        let direct = admin.with_token("direct", &admin.token(ACCOUNT, Some("n1"))?)?;
        for agent in [&world.agent1, &direct] {
            agent.run(&[
                "annotate",
                "node",
                "n1",
                "hauberk.io/keys=first",
                "hauberk.io/enforced=x",
                "hauberk.io/config=y",
            ])?;
            agent.run(&["annotate", "--overwrite", "node", "n1", "hauberk.io/keys=second"])?;
            ensure!(world.keys()? == "second", "not written");
            agent.run(&["annotate", "node", "n1", "hauberk.io/keys-", "hauberk.io/enforced-", "hauberk.io/config-"])?;
            ensure!(world.keys()?.is_null(), "not removed");
        }
        world.agent2.run(&["annotate", "node", "n2", "hauberk.io/keys=other"])?;

        // The agent may remove the start-up taint, and no other taint of the node.
        let taints = || -> Result<Vec<Value>> {
            Ok(admin.get::<Value>(&["node", "n1"])?["spec"]["taints"].as_array().cloned().unwrap_or_default())
        };
        let before = taints()?;
        let kept: Vec<Value> =
            before.iter().filter(|taint| taint["key"] != "hauberk.io/agent-not-ready").cloned().collect();
        ensure!(kept.len() + 1 == before.len() && kept.len() > 1, "{before:?}");
        let patch = json!({"spec": {"taints": kept}}).to_string();
        world.agent1.run(&["patch", "node", "n1", "--type=merge", "-p", &patch])?;
        ensure!(taints()? == kept, "{:?}", taints()?);
        let patch = json!({"spec": {"taints": before}}).to_string();
        let refusal = world.agent1.refused(&["patch", "node", "n1", "--type=merge", "-p", &patch], "")?;
        ensure!(refusal.contains("but remove the taint hauberk.io/agent-not-ready"), "{refusal}");

        // These annotations are for people.
        world.agent1.run(&["annotate", "namespace", "default", "hauberk.io/status=encrypted on 2/2 nodes"])?;
        world.agent1.run(&["annotate", "pod", "agent-n1", "-n", chart::NAMESPACE, "hauberk.io/status=encrypted"])?;
        Ok(())
    })
}

fn nobody_else(context: &Context) -> Result<()> {
    with_world(context, |world| {
        world.publish("genuine")?;
        let admin = world.admin();
        let plane = &world.control_plane;
        let refused = |who: &str, kubectl: &Kubectl, before: &[&str]| -> Result<()> {
            for (way, arguments, input) in ways(admin)? {
                let arguments: Vec<&str> = before.iter().copied().chain(arguments.iter().map(String::as_str)).collect();
                let refusal = kubectl.refused(&arguments, &input).with_context(|| format!("{who}: {way}"))?;
                ensure!(world.keys()? == "genuine", "{who}: {way}: written all the same");
                // The policies' own messages: a refusal for another reason would prove nothing.
                // RBAC lets agents patch, not update.
                let by_policy =
                    refusal.contains(EVERYBODY) && refusal.contains("written by the hauberk agent on that node alone");
                let is_agent = refusal.contains(AGENT) || refusal.contains(AGENTS);
                let for_agents = refusal.contains(AGENTS) || way == "replacement" && refusal.contains("cannot update");
                ensure!(by_policy || is_agent && for_agents, "{who}: {way}: {refusal}");
            }
            Ok(())
        };
        refused("another node's agent, or who stole its token", &world.agent2, &[])?;
        refused("a token of the agents' account that names no node", &world.unbound, &[])?;
        refused("who may update nodes", &plane.kubectl_as("operator"), &[])?;
        refused("the cluster's administrator", admin, &[])?;
        refused("who impersonates the agents' account", admin, &["--as", AGENT])?;
        let other = format!("{NODE_NAME}=n2");
        refused("who impersonates another node's agent", admin, &["--as", AGENT, "--as-user-extra", &other])?;
        let own = format!("{NODE_NAME}=n1");
        refused("another account that is on the node", admin, &["--as", "operator", "--as-user-extra", &own])?;

        // The kubelet may write its Node and its status, but in neither way the annotations.
        let kubelet = plane.kubectl_as("n1");
        let mut object: Value = admin.get(&["node", "n1"])?;
        object["metadata"]["annotations"]["hauberk.io/keys"] = json!("forged");
        for path in ["/api/v1/nodes/n1", "/api/v1/nodes/n1/status"] {
            let refusal = kubelet.refused(&["replace", "--raw", path, "-f", "-"], &object.to_string())?;
            ensure!(refusal.contains(EVERYBODY) && refusal.contains("system:node:n1 is not it"), "{path}: {refusal}");
        }
        let refusal = kubelet.refused(&["annotate", "node", "n1", "hauberk.io/keys-"], "")?;
        ensure!(refusal.contains(EVERYBODY), "{refusal}");
        ensure!(world.keys()? == "genuine", "written all the same");

        // Fields that are not hauberk's can be written as before.
        object["metadata"]["annotations"]["hauberk.io/keys"] = json!("genuine");
        object["metadata"]["annotations"]["example.com/seen"] = json!("1");
        accepted(&kubelet, &["replace", "--raw", "/api/v1/nodes/n1/status", "-f", "-"], &object.to_string())?;
        plane.kubectl_as("operator").run(&[
            "annotate",
            "--overwrite",
            "node",
            "n1",
            "example.com/a=b",
            "hauberk.example.com/a=b",
        ])?;
        admin.run(&["label", "--overwrite", "node", "n1", "example.com/a=b"])?;
        Ok(())
    })
}

fn accepted(kubectl: &Kubectl, arguments: &[&str], input: &str) -> Result<()> {
    let answer = kubectl.answer(arguments, input)?;
    ensure!(answer.success, "kubectl {}: {}", arguments.join(" "), answer.stderr);
    Ok(())
}

/// Every way to write an annotation of n1: its description, `kubectl`'s arguments, and its input.
fn ways(admin: &Kubectl) -> Result<Vec<(&'static str, Vec<String>, String)>> {
    let mut whole: Value = admin.get(&["node", "n1"])?;
    whole["metadata"]["annotations"]["hauberk.io/keys"] = json!("forged");
    let applied = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "annotations": {"hauberk.io/keys": "forged"}}});
    let patch = |kind: &str, patch: Value| -> Vec<String> {
        ["patch", "node", "n1", &format!("--type={kind}"), "-p", &patch.to_string()].map(str::to_owned).to_vec()
    };
    let words = |words: &[&str]| -> Vec<String> { words.iter().map(|word| (*word).to_owned()).collect() };
    let annotations = |value: Value| json!({"metadata": {"annotations": value}});
    let pointer = "/metadata/annotations/hauberk.io~1keys";
    let none = String::new;
    Ok(vec![
        ("change", words(&["annotate", "--overwrite", "node", "n1", "hauberk.io/keys=forged"]), none()),
        ("removal", words(&["annotate", "node", "n1", "hauberk.io/keys-"]), none()),
        ("addition", words(&["annotate", "node", "n1", "hauberk.io/anything=x"]), none()),
        ("merge patch", patch("merge", annotations(json!({"hauberk.io/keys": "forged"}))), none()),
        ("removal of all annotations", patch("merge", annotations(Value::Null)), none()),
        ("strategic merge patch", patch("strategic", annotations(json!({"hauberk.io/keys": null}))), none()),
        ("JSON patch", patch("json", json!([{"op": "replace", "path": pointer, "value": "forged"}])), none()),
        ("removal by JSON patch", patch("json", json!([{"op": "remove", "path": pointer}])), none()),
        (
            "rename by JSON patch",
            patch("json", json!([{"op": "move", "from": pointer, "path": "/metadata/annotations/a"}])),
            none(),
        ),
        (
            "server-side apply",
            words(&["apply", "--server-side", "--force-conflicts", "--field-manager=forger", "-f", "-"]),
            applied.to_string(),
        ),
        ("replacement", words(&["replace", "-f", "-"]), whole.to_string()),
    ])
}

fn creation(context: &Context) -> Result<()> {
    with_world(context, |world| {
        let admin = world.admin();
        let kubelet = world.control_plane.kubectl_as("n3");
        let with =
            r#"{"apiVersion":"v1","kind":"Node","metadata":{"name":"n3","annotations":{"hauberk.io/keys":"forged"}}}"#;
        let without =
            r#"{"apiVersion":"v1","kind":"Node","metadata":{"name":"n3","annotations":{"example.com/a":"b"}}}"#;
        for (who, kubectl) in [("the kubelet", &kubelet), ("the administrator", admin)] {
            let refusal = kubectl.refused(&["create", "-f", "-"], with)?;
            ensure!(refusal.contains(EVERYBODY), "{who}: {refusal}");
            ensure!(refusal.contains("Node n3 may not be created with hauberk.io/ annotations"), "{who}: {refusal}");
        }
        accepted(&kubelet, &["create", "-f", "-"], without)?;
        admin.run(&["delete", "node", "n3"])?;
        Ok(())
    })
}

fn nothing_else(context: &Context) -> Result<()> {
    with_world(context, |world| {
        // With RBAC out of the way, only the policy can refuse.
        let admin = world.admin();
        let subject = format!("--serviceaccount={}", ACCOUNT.replace('/', ":"));
        admin.run(&["create", "clusterrolebinding", "too-much", "--clusterrole=cluster-admin", &subject])?;
        wait::eventually("the agents to be allowed anything", || {
            Ok(world.agent1.answer(&["auth", "can-i", "delete", "nodes"], "")?.success.then_some(()))
        })?;
        admin.run(&["annotate", "--overwrite", "node", "n1", "example.com/a=b"])?;
        admin.run(&["label", "--overwrite", "node", "n1", "example.com/a=b"])?;
        let result = refused_to_agents(world);
        admin.run(&["delete", "clusterrolebinding", "too-much"])?;
        wait::eventually("the agents to be allowed no more than before", || {
            Ok((!world.agent1.answer(&["auth", "can-i", "delete", "nodes"], "")?.success).then_some(()))
        })?;
        result
    })
}

fn refused_to_agents(world: &World) -> Result<()> {
    let system = chart::NAMESPACE;
    let own_account = r#"{"spec":{"serviceAccountName":"hauberk"}}"#;
    let spec = |patch: &'static str| ["patch", "node", "n1", "--type=merge", "-p", patch];
    let cases: Vec<Vec<&str>> = vec![
        vec!["label", "node", "n1", "example.com/b=c"],
        vec!["label", "--overwrite", "node", "n1", "example.com/a-"],
        vec!["annotate", "node", "n1", "example.com/b=c"],
        vec!["annotate", "--overwrite", "node", "n1", "example.com/a=c"],
        vec!["annotate", "node", "n1", "example.com/a-"],
        spec(r#"{"spec":{"unschedulable":true}}"#).to_vec(),
        vec!["taint", "node", "n1", "example.com/new=x:NoSchedule"],
        vec!["taint", "node", "n1", "example.com/other-"],
        spec(r#"{"spec":{"taints":null}}"#).to_vec(),
        spec(r#"{"spec":{"providerID":"x"}}"#).to_vec(),
        spec(r#"{"metadata":{"finalizers":["example.com/x"]}}"#).to_vec(),
        spec(r#"{"metadata":{"annotations":{"hauberk.io/keys":"x","example.com/a":"x"}}}"#).to_vec(),
        vec!["patch", "node", "n1", "--subresource=status", "--type=merge", "-p", r#"{"status":{"phase":"Running"}}"#],
        vec!["label", "node", "n2", "example.com/b=c"],
        vec!["delete", "node", "n2"],
        vec!["delete", "node", "n1"],
        vec!["label", "namespace", "default", "hauberk.io/encryption=disabled"],
        vec!["annotate", "namespace", "default", "example.com/a=b"],
        vec!["annotate", "namespace", "default", "hauberk.io/other=b"],
        vec!["create", "namespace", "other"],
        vec!["delete", "namespace", chart::NAMESPACE],
        vec!["annotate", "pod", "-n", system, "agent-n2", "hauberk.io/status=x"],
        vec!["annotate", "pod", "-n", system, "agent-n1", "example.com/a=b"],
        vec!["label", "pod", "-n", system, "agent-n1", "hauberk.io/encryption=disabled"],
        vec!["patch", "pod", "-n", system, "agent-n1", "--type=merge", "-p", r#"{"spec":{"activeDeadlineSeconds":1}}"#],
        vec!["delete", "pod", "-n", system, "agent-n1", "--grace-period=0", "--force"],
        vec!["run", "-n", system, "more", "--image=example.com/none", "--restart=Never", "--overrides", own_account],
    ];
    for case in &cases {
        let refusal = world.agent1.refused(case, "")?;
        ensure!(refusal.contains(AGENTS), "{}: {refusal}", case.join(" "));
    }
    // A token that names no node gives no permission.
    let refusal = world.unbound.refused(&["annotate", "namespace", "kube-system", "hauberk.io/status=x"], "")?;
    ensure!(refusal.contains(AGENTS) && refusal.contains("whose token names no node"), "{refusal}");
    Ok(())
}

fn least_privilege(context: &Context) -> Result<()> {
    with_world(context, |world| {
        let may = |arguments: &[&str]| -> Result<bool> {
            Ok(world.agent1.answer(&[&["auth", "can-i", "-q"], arguments].concat(), "")?.success)
        };
        let all: [&[&str]; 8] = [
            &["watch", "nodes"],
            &["watch", "namespaces"],
            &["watch", "pods", "-A"],
            &["watch", "hauberkconfigs.hauberk.io"],
            &["patch", "nodes"],
            &["patch", "hauberkconfigs.hauberk.io", "--subresource=status"],
            &["create", "events.events.k8s.io", "-A"],
            &["update", "leases.coordination.k8s.io/hauberk-reporter", "-n", chart::NAMESPACE],
        ];
        for question in all {
            ensure!(may(question)?, "an agent may not {}", question.join(" "));
        }
        let none: [&[&str]; 17] = [
            &["get", "secrets", "-A"],
            &["list", "configmaps", "-A"],
            &["create", "pods", "-A"],
            &["delete", "pods", "-A"],
            &["update", "pods", "-A"],
            &["create", "pods", "-A", "--subresource=exec"],
            &["update", "nodes"],
            &["delete", "nodes"],
            &["patch", "nodes", "--subresource=status"],
            &["get", "nodes", "--subresource=proxy"],
            &["delete", "namespaces"],
            &["patch", "hauberkconfigs.hauberk.io"],
            &["update", "leases.coordination.k8s.io/other", "-n", chart::NAMESPACE],
            &["update", "leases.coordination.k8s.io/hauberk-reporter", "-n", "kube-system"],
            &["create", "serviceaccounts", "-A", "--subresource=token"],
            &["impersonate", "users"],
            &["patch", "validatingadmissionpolicies.admissionregistration.k8s.io"],
        ];
        for question in none {
            ensure!(!may(question)?, "an agent may {}", question.join(" "));
        }
        Ok(())
    })
}
