"""Tasks that several tests use."""

import pytest

from sk_meta.tasks import make_blob_tasks, make_sinusoids


@pytest.fixture(scope="module")
def blobs():
    return make_blob_tasks(16, n_classes=3, labels="shared", random_state=0)


@pytest.fixture(scope="module")
def local_blobs():
    return make_blob_tasks(16, n_classes=3, labels="local", random_state=0)


@pytest.fixture(scope="module")
def sinusoids():
    return make_sinusoids(16, random_state=0)
