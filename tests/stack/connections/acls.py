"""Gives ACLs: an address of the broker as the argument; a line each with principal, operation, kind and name of the resource."""

import sys

from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

OPERATIONS = {operation.name.replace("_", ""): operation for operation in AclOperation}

bindings = []
for line in sys.stdin:
    principal, operation, kind, name = line.split()
    bindings.append(
        AclBinding(
            ResourceType[kind.upper()],
            name,
            ResourcePatternType.LITERAL,
            principal,
            "*",
            OPERATIONS[operation.upper()],
            AclPermissionType.ALLOW,
        )
    )
admin = AdminClient({"bootstrap.servers": sys.argv[1]})
for future in admin.create_acls(bindings, request_timeout=20).values():
    future.result()
