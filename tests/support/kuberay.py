"""The parts of KubeRay's custom resources that deploy/kuberay uses, as JSON Schema.

Fields after its API reference, compared one by one with that of 1.6.2; beyond them what the operator itself refuses:
names and labels that Kubernetes has not, labels in rayStartParams, a token without a Ray version, a time to live
without a shutdown. Every object is closed: a field that the schema has not is dropped by Kubernetes without a word, and
fails here.
"""

from __future__ import annotations

from typing import Any

TEXT, FLAG, COUNT = {"type": "string"}, {"type": "boolean"}, {"type": "integer", "minimum": 0}
QUANTITY = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|[kKMGT]i?)?$"}
TEXTS = {"type": "object", "additionalProperties": TEXT}
NAME = {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 47}
LABELS = {
    "type": "object", "propertyNames": {"pattern": r"^([a-z0-9.-]+/)?[A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?$"},
    "additionalProperties": {"type": "string", "pattern": r"^([A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?)?$"},
}
START = {"type": "object", "additionalProperties": TEXT, "propertyNames": {"not": {"const": "labels"}}}


def _closed(required: str = "", **fields: Any) -> dict[str, Any]:
    return {"type": "object", "properties": fields, "required": required.split(), "additionalProperties": False}


def _list(item: Any) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": 1}


def _one_of(*values: str) -> dict[str, Any]:
    return {"enum": list(values)}


def _object(kind: str, spec: Any, version: str = "ray.io/v1") -> dict[str, Any]:
    metadata = _closed("name", name=NAME, namespace=NAME, labels=LABELS, annotations=TEXTS)
    return _closed("apiVersion kind metadata spec", apiVersion={"const": version}, kind={"const": kind},
                   metadata=metadata, spec=spec)


# Pods: Kubernetes' core/v1, as far as it is used here.
_AMOUNTS = {"type": "object", "additionalProperties": QUANTITY}
_RESOURCES = _closed(limits=_AMOUNTS, requests=_AMOUNTS)
_CONTAINER = _closed(
    "name image resources", name=TEXT, image=TEXT, resources=_RESOURCES,
    volumeMounts=_list(_closed("name mountPath", name=TEXT, mountPath=TEXT, readOnly=FLAG, subPath=TEXT)),
)
_TOLERATION = _closed(
    key=TEXT, operator=_one_of("Exists", "Equal"), value=TEXT,
    effect=_one_of("NoSchedule", "PreferNoSchedule", "NoExecute"),
)
_POD = _closed(
    "containers", containers=_list(_CONTAINER), nodeSelector=TEXTS, tolerations=_list(_TOLERATION),
    securityContext=_closed(fsGroup=COUNT, runAsUser=COUNT),
    volumes=_list(_closed("name", name=TEXT, persistentVolumeClaim=_closed("claimName", claimName=TEXT))),
)
_TEMPLATE = _closed("spec", metadata=_closed(labels=TEXTS, annotations=TEXTS), spec=_POD)

_HEAD = _closed(
    "template", labels=LABELS, resources=TEXTS, rayStartParams=START, template=_TEMPLATE, enableIngress=FLAG,
    serviceType=_one_of("ClusterIP", "NodePort", "LoadBalancer"),
)
_GROUP = _closed(
    "groupName maxReplicas minReplicas template", groupName=NAME, labels=LABELS, resources=TEXTS, replicas=COUNT,
    minReplicas=COUNT, maxReplicas=COUNT, numOfHosts=COUNT, idleTimeoutSeconds=COUNT, suspend=FLAG,
    rayStartParams=START, template=_TEMPLATE,
)
CLUSTER_SPEC = _closed(
    "headGroupSpec", rayVersion=TEXT, headGroupSpec=_HEAD, workerGroupSpecs=_list(_GROUP), suspend=FLAG,
    enableInTreeAutoscaling=FLAG, headServiceAnnotations=TEXTS, managedBy=TEXT,
    authOptions=_closed("mode", mode=_one_of("disabled", "token"), secretName=TEXT),
    autoscalerOptions=_closed(
        version=_one_of("v1", "v2"), idleTimeoutSeconds=COUNT, resources=_RESOURCES, image=TEXT,
        upscalingMode=_one_of("Default", "Aggressive", "Conservative"),
    ),
) | {"dependentRequired": {"authOptions": ["rayVersion"]}}
JOB_SPEC = _closed(
    entrypoint=TEXT, runtimeEnvYAML=TEXT, rayClusterSpec=CLUSTER_SPEC, clusterSelector=TEXTS, metadata=TEXTS,
    backoffLimit=COUNT, activeDeadlineSeconds=COUNT, ttlSecondsAfterFinished=COUNT, shutdownAfterJobFinishes=FLAG,
    submissionMode=_one_of("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"), jobId=TEXT, suspend=FLAG,
    submitterConfig=_closed(backoffLimit=COUNT), entrypointNumCpus={"type": "number"},
    entrypointNumGpus={"type": "number"}, entrypointResources=TEXT,
    preRunningDeadlineSeconds={"type": "integer", "minimum": 1},
) | {"dependentRequired": {"ttlSecondsAfterFinished": ["shutdownAfterJobFinishes"]}}
_CLAIM = _closed(
    "accessModes resources", accessModes=_list(_one_of("ReadWriteOnce", "ReadWriteMany")), resources=_RESOURCES,
    storageClassName=TEXT,
)
SCHEMAS = {
    "RayCluster": _object("RayCluster", CLUSTER_SPEC), "RayJob": _object("RayJob", JOB_SPEC),
    "PersistentVolumeClaim": _object("PersistentVolumeClaim", _CLAIM, "v1"),
}
