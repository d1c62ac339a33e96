//! Certificates, tokens and kubeconfigs of one cluster.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use anyhow::{Context, Result};

use super::plan::{API_SERVICE, OUTSIDE, Plan};
use crate::process;

/// Random bytes of the kernel's, as 32 hexadecimal digits.
pub(super) fn token() -> Result<String> {
    let uuid =
        fs::read_to_string("/proc/sys/kernel/random/uuid").context("read a random number from the kernel")?;
    Ok(uuid.trim().replace('-', ""))
}

/// Writes all credentials into the plan's folder, which only its owner may read.
pub(super) fn make(plan: &Plan) -> Result<()> {
    fs::set_permissions(&plan.folder, fs::Permissions::from_mode(0o700))?;
    certificate(plan, "ca", "/CN=ca", None)?;
    let names = format!(
        "subjectAltName=IP:127.0.0.1,IP:{OUTSIDE},IP:{API_SERVICE},DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,\
         DNS:kubernetes.default.svc"
    );
    certificate(plan, "apiserver", "/CN=kube-apiserver", Some(&names))?;
    certificate(
        plan,
        "kubelet-client",
        "/O=system:masters/CN=apiserver",
        Some("extendedKeyUsage=clientAuth"),
    )?;
    openssl(plan, &["genrsa", "-out", "accounts.key", "2048"])?;
    openssl(plan, &["rsa", "-in", "accounts.key", "-pubout", "-out", "accounts.pub"])?;
    write(&plan.file("tokens.csv"), &tokens(plan))?;
    for who in ["admin", "controllers", "scheduler"] {
        write(&plan.file(&kubeconfig_name(who)), &kubeconfig(plan, who))?;
    }
    Ok(())
}

/// The kubeconfig of an identity.
pub(super) fn kubeconfig_name(who: &str) -> String {
    format!("{who}.kubeconfig")
}

fn certificate(plan: &Plan, name: &str, subject: &str, extension: Option<&str>) -> Result<()> {
    let (key, out) = (format!("{name}.key"), format!("{name}.crt"));
    let mut words =
        vec!["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    words.extend(["-days", "30", "-subj", subject, "-keyout", &key, "-out", &out]);
    if let Some(extension) = extension {
        words.extend(["-CA", "ca.crt", "-CAkey", "ca.key", "-addext", extension]);
        words.extend(["-addext", "basicConstraints=critical,CA:FALSE"]);
    }
    openssl(plan, &words)
}

fn openssl(plan: &Plan, words: &[&str]) -> Result<()> {
    let mut openssl = process::command("openssl");
    process::output(openssl.args(words).current_dir(&plan.folder)).map(|_| ())
}

/// Who the API server takes a token's holder for.
fn tokens(plan: &Plan) -> String {
    let token = &plan.token;
    let mut lines = format!(
        "admin-{token},admin,admin,system:masters\n\
         controllers-{token},system:kube-controller-manager,controllers\n\
         scheduler-{token},system:kube-scheduler,scheduler\n\
         proxy-{token},system:kube-proxy,proxy\n"
    );
    for node in 1..=plan.nodes {
        lines += &format!("node-{node}-{token},system:node:node-{node},node-{node},system:nodes\n");
    }
    lines
}

fn kubeconfig(plan: &Plan, who: &str) -> String {
    let (api, token) = (plan.api, &plan.token);
    format!(
        "{{apiVersion: v1, kind: Config, current-context: c, contexts: [{{name: c, context: {{cluster: c, user: u}}}}],\n \
         clusters: [{{name: c, cluster: {{server: \"https://127.0.0.1:{api}\", certificate-authority: ca.crt}}}}],\n \
         users: [{{name: u, user: {{token: \"{who}-{token}\"}}}}]}}\n"
    )
}

fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| format!("write {}", file.display()))
}
