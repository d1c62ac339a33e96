{{/* Whether the API server has ValidatingAdmissionPolicy v1. Nothing is installed where it has not, unless that is accepted.
     Without a cluster helm knows no kinds; then it is taken for granted, as in any Kubernetes that Chart.yaml admits. */}}
{{- define "kubeveil.hasAdmissionPolicy" -}}
{{- $has := .Capabilities.APIVersions -}}
{{- if or (not ($has.Has "v1/Node")) ($has.Has "admissionregistration.k8s.io/v1/ValidatingAdmissionPolicy") -}}
true
{{- else if not .Values.admissionPolicy.acceptMissing -}}
{{- fail (printf "this API server (Kubernetes %s) serves no ValidatingAdmissionPolicy of admissionregistration.k8s.io/v1: without it an agent's credential that was stolen from one node can write every Node. Switch it on (--runtime-config, --disable-admission-plugins of kube-apiserver), or accept that with admissionPolicy.acceptMissing=true" .Capabilities.KubeVersion.Version) -}}
{{- end -}}
{{- end -}}

{{/* What all admission policies of ours have in common: `spec` up to the requests that one is about. A policy is about one account
     only (a list: root, name of the account), so that a mistake in it stops nobody else. */}}
{{- define "kubeveil.policyOf" -}}
failurePolicy: Fail
matchConditions:
  - name: account
    expression: request.userInfo.username == 'system:serviceaccount:{{ (index . 0).Release.Namespace }}:{{ index . 1 }}'
{{- end -}}

{{/* A policy in force (a list: root, its name). */}}
{{- define "kubeveil.policyBinding" -}}
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata:
  name: {{ index . 1 }}
  labels: {{- include "kubeveil.labels" (index . 0) | nindent 4 }}
spec:
  policyName: {{ index . 1 }}
  validationActions: [Deny]
{{- end -}}
