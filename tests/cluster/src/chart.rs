//! The chart as users get it: installed by helm, or rendered by helm after its custom resource
//! definitions are applied.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use hauberk_netns::netns::feed;

use crate::control_plane::POD_RANGES;
use crate::kubectl::Kubectl;
use crate::tools;

/// The namespace of all of hauberk's objects.
pub const NAMESPACE: &str = "hauberk-system";
/// The name of the release.
pub const RELEASE: &str = "hauberk";
/// The placeholder for the chart's folder in helm's arguments.
pub const CHART: &str = "deploy/chart/hauberk";

/// Applies hauberk's custom resource definitions and then all of the chart's objects, with these
/// values in addition to the pods' ranges.
pub fn install(kubectl: &Kubectl, values: &[&str]) -> Result<()> {
    let kinds = fs::read_to_string(folder().join("crds/hauberkconfigs.yaml")).context("read the custom resources")?;
    kubectl.apply(&kinds)?;
    kubectl.run(&["wait", "--for=condition=Established", "--timeout=60s", "crd/hauberkconfigs.hauberk.io"])?;
    kubectl.apply(&format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {NAMESPACE}}}}}"))?;
    kubectl.apply(&render(values)?)?;
    Ok(())
}

/// Installs a chart ([`folder`], or a copy) as a helm release, as its documentation says, with
/// these values in addition to the pods' ranges.
///
/// # Errors
/// helm fails; the message is its own.
pub fn install_release(kubectl: &Kubectl, chart: &Path, values: &[&str]) -> Result<()> {
    let (ranges, chart) = (pod_ranges(), chart.display().to_string());
    let mut arguments = vec!["install", RELEASE, &chart, "--create-namespace", "--set", &ranges];
    arguments.extend(values.iter().flat_map(|value| ["--set", value]));
    helm(kubectl, &arguments).map(drop)
}

/// Runs helm in hauberk's namespace and returns its output. [`CHART`] among the arguments stands
/// for the chart's folder.
///
/// # Errors
/// helm fails; the message is its own.
pub fn helm(kubectl: &Kubectl, arguments: &[&str]) -> Result<String> {
    let mut command = kubectl.netns().command(tools::built("helm")?);
    for home in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
        command.env(home, kubectl.kubeconfig().with_file_name("helm"));
    }
    command.arg("--kubeconfig").arg(kubectl.kubeconfig()).args(["--namespace", NAMESPACE]);
    for argument in arguments {
        if *argument == CHART {
            command.arg(folder())
        } else {
            command.arg(argument)
        };
    }
    feed(command, "").with_context(|| format!("helm {}", arguments.join(" ")))
}

/// The chart's objects with these values (`key=value`) in addition to the pods' ranges.
pub fn render(values: &[&str]) -> Result<String> {
    let mut command = Command::new(tools::built("helm")?);
    command.args(["template", "hauberk"]).arg(folder()).args(["--namespace", NAMESPACE]);
    command.arg("--set").arg(pod_ranges());
    for value in values {
        command.args(["--set", value]);
    }
    let output = command.output().context("run helm")?;
    ensure!(output.status.success(), "helm template: {}", String::from_utf8_lossy(&output.stderr).trim());
    String::from_utf8(output.stdout).context("helm's output")
}

fn pod_ranges() -> String {
    format!("config.clusterRanges={{{}}}", POD_RANGES.join(","))
}

/// The chart for nodes on which the cgroup2 file system is at `root`. If that is not where the
/// chart expects it, this is a copy of the chart in `directory`.
///
/// # Errors
/// File access fails, or the chart does not mount the file system.
pub fn with_cgroups(root: &Path, directory: &Path) -> Result<PathBuf> {
    const TEMPLATE: &str = "templates/_names.tpl";
    let path = |root: &Path| format!("hostPath: {{path: {}, type: Directory}}", root.display());
    let expected = path(Path::new("/sys/fs/cgroup"));
    let text = fs::read_to_string(folder().join(TEMPLATE)).context("read the chart's template")?;
    ensure!(text.matches(&expected).count() == 1, "the chart does not have `{expected}` once");
    if path(root) == expected {
        return Ok(folder());
    }
    let copy = directory.join("chart");
    let mut command = Command::new("cp");
    command.arg("-rT").arg(folder()).arg(&copy);
    feed(command, "").context("copy the chart")?;
    fs::write(copy.join(TEMPLATE), text.replace(&expected, &path(root))).context("write the chart's template")?;
    Ok(copy)
}

/// The chart's folder.
pub fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../deploy/chart/hauberk")
}
