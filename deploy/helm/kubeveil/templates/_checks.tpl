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
