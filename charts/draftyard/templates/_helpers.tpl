{{- define "draftyard.name" -}}
{{ .Values.fullnameOverride | default .Release.Name | trunc 53 | trimSuffix "-" }}
{{- end }}

{{- define "draftyard.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (include "draftyard.name" .) }}
{{- end }}

{{- define "draftyard.selector" -}}
app.kubernetes.io/name: draftyard
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "draftyard.labels" -}}
{{ include "draftyard.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- /* Labels and namespace of an object that lives beside the operator. */}}
{{- define "draftyard.metadata" -}}
name: {{ include "draftyard.name" . }}
namespace: {{ .Release.Namespace }}
labels:
  {{- include "draftyard.labels" . | nindent 2 }}
{{- end }}

{{- /* Objects of the whole cluster bear the namespace in their name, so that two releases do not meet. */}}
{{- define "draftyard.clusterName" -}}
{{ .Release.Namespace }}-{{ include "draftyard.name" . }}
{{- end }}

{{- define "draftyard.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}

{{- define "draftyard.trainerImage" -}}
{{ .Values.config.trainerImage | default (printf "draftyard-trainer:%s" .Chart.AppVersion) }}
{{- end }}

{{- /* What the operator may do where it watches: the table of docs/install.md, and nothing else. */}}
{{- define "draftyard.rules" -}}
- apiGroups: [draftyard.dev]
  resources: [drafttrainings]
  verbs: [get, list, watch]
- apiGroups: [draftyard.dev]
  resources: [drafttrainings/status]
  verbs: [patch]
- apiGroups: [draftyard.dev]
  resources: [drafttrainings/finalizers]
  verbs: [update]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, patch, delete]
{{- if .Values.rbac.pytorchJobs }}
- apiGroups: [kubeflow.org]
  resources: [pytorchjobs]
  verbs: [get, list, watch, create, delete]
{{- end }}
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, create]
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get, list, create, patch]
- apiGroups: [""]
  resources: [pods]
  verbs: [list]
- apiGroups: [""]
  resources: [events]
  verbs: [list, create]
{{- if .Values.rbac.kueue }}
- apiGroups: [kueue.x-k8s.io]
  resources: [workloads]
  verbs: [list]
{{- end }}
{{- end }}

{{- define "draftyard.subjects" -}}
- kind: ServiceAccount
  name: {{ include "draftyard.serviceAccount" . }}
  namespace: {{ .Release.Namespace }}
{{- end }}

{{- /* What the operator reads from /etc/draftyard/config.yaml. */}}
{{- define "draftyard.config" -}}
trainerImage: {{ include "draftyard.trainerImage" . | quote }}
gpuResource: {{ .Values.config.gpuResource | quote }}
allowedImages: {{ .Values.config.allowedImages | toJson }}
allowedServiceAccounts: {{ .Values.config.allowedServiceAccounts | toJson }}
resyncSeconds: {{ int .Values.config.resyncSeconds }}
maxParallelism: {{ int .Values.config.maxParallelism }}
watchNamespaces: {{ .Values.watchNamespaces | toJson }}
fsGroup: {{ .Values.config.fsGroup | toJson }}
pytorchJobs: {{ .Values.rbac.pytorchJobs }}
readWorkloads: {{ .Values.rbac.kueue }}
{{- end }}
