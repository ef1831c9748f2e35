"""The tables of fields that callers without the permission read may see."""

from typing import Any

import pytest
from caseload_server.security import redaction
from google.protobuf.descriptor import Descriptor
from google.protobuf.message_factory import GetMessageClass

from tests.api.sample_values import METHODS
from tests.security.canaries import CANARY
from tests.security.redacted_fields import KEPT, WRITES, set_fields
from tests.support.api_driver import RPCS


def filled(kind: Descriptor) -> Any:
    """A message with every field set, and one entry in every list."""
    message = GetMessageClass(kind)()
    for field in kind.fields:
        nested = field.message_type
        if nested and nested.GetOptions().map_entry:
            getattr(message, field.name)["key"] = CANARY
        elif nested and field.is_repeated:
            getattr(message, field.name).append(filled(nested))
        elif nested:
            getattr(message, field.name).CopyFrom(filled(nested))
        else:
            value: Any = CANARY if field.cpp_type == field.CPPTYPE_STRING else 1
            value = [value] if field.is_repeated else value
            message.MergeFrom(type(message)(**{field.name: value}))
    return message


@pytest.mark.parametrize("rpc", sorted(WRITES))
def test_a_field_that_the_tables_do_not_name_is_removed(rpc: str) -> None:
    """Every field of every response is set, also those that a future version adds."""
    response = filled(RPCS[rpc].output_type)
    redaction.redact(response, GetMessageClass(RPCS[rpc].input_type)())
    assert set(set_fields(response)) <= KEPT


def test_the_tables_name_fields_of_the_contract_that_are_not_personal() -> None:
    responses = {field.name for rpc in METHODS for field in rpc.output_type.fields}
    assert responses >= redaction._RESPONSE_FIELDS
    pool: Any = METHODS[0].containing_service.file.pool
    for kind, names in {**redaction._RECORD_FIELDS, **redaction._REFERENCES}.items():
        fields = pool.FindMessageTypeByName(kind).fields_by_name
        assert [name for name in names if fields[name].GetOptions().debug_redact] == []
