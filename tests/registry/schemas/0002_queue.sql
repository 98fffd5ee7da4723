-- A registry as conceptry 0.2.0 leaves it: the schema after the migration "queue", and a few rows
-- in every table. Frozen: it is what tests/faults/test_migrations.py brings up to date.

PRAGMA application_id = 1131443321;

CREATE TABLE concept (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    name VARCHAR NOT NULL,
    category VARCHAR NOT NULL,
    notes VARCHAR NOT NULL,
    created VARCHAR NOT NULL,
    updated VARCHAR NOT NULL,
    search VARCHAR NOT NULL,
    UNIQUE (name)
);
CREATE INDEX ix_concept_category ON concept (category);
CREATE TABLE event (
    id INTEGER NOT NULL,
    at VARCHAR NOT NULL,
    concept_id INTEGER NOT NULL,
    concept VARCHAR NOT NULL,
    action VARCHAR NOT NULL,
    detail VARCHAR NOT NULL,
    PRIMARY KEY (id)
);
CREATE INDEX ix_event_concept ON event (concept);
CREATE INDEX ix_event_concept_id ON event (concept_id);
CREATE TABLE generation (
    id INTEGER NOT NULL,
    output_sha256 VARCHAR NOT NULL,
    prompt VARCHAR NOT NULL,
    seed INTEGER NOT NULL,
    base VARCHAR NOT NULL,
    base_sha256 VARCHAR NOT NULL,
    settings VARCHAR NOT NULL,
    created VARCHAR NOT NULL,
    PRIMARY KEY (id)
);
CREATE INDEX ix_generation_output_sha256 ON generation (output_sha256);
CREATE TABLE migration (
    name VARCHAR NOT NULL,
    position INTEGER NOT NULL,
    needs VARCHAR NOT NULL,
    applied VARCHAR NOT NULL,
    PRIMARY KEY (name)
);
CREATE TABLE image (
    id INTEGER NOT NULL,
    concept_id INTEGER NOT NULL,
    sha256 VARCHAR NOT NULL,
    bytes INTEGER NOT NULL,
    filename VARCHAR NOT NULL,
    format VARCHAR NOT NULL,
    width INTEGER NOT NULL,
    height INTEGER NOT NULL,
    caption VARCHAR,
    mask VARCHAR,
    mask_bytes INTEGER,
    phash VARCHAR NOT NULL,
    added VARCHAR NOT NULL,
    PRIMARY KEY (id),
    UNIQUE (concept_id, sha256),
    FOREIGN KEY(concept_id) REFERENCES concept (id) ON DELETE CASCADE
);
CREATE INDEX ix_image_mask ON image (mask);
CREATE INDEX ix_image_sha256 ON image (sha256);
CREATE TABLE run (
    id INTEGER NOT NULL,
    uid VARCHAR NOT NULL,
    concept_id INTEGER NOT NULL,
    method VARCHAR NOT NULL,
    config VARCHAR NOT NULL,
    base VARCHAR NOT NULL,
    base_sha256 VARCHAR NOT NULL,
    seed INTEGER NOT NULL,
    packages VARCHAR NOT NULL,
    host VARCHAR NOT NULL,
    status VARCHAR NOT NULL,
    started VARCHAR NOT NULL,
    finished VARCHAR,
    error VARCHAR,
    PRIMARY KEY (id),
    UNIQUE (uid),
    FOREIGN KEY(concept_id) REFERENCES concept (id) ON DELETE CASCADE
);
CREATE INDEX ix_run_concept_id ON run (concept_id);
CREATE TABLE tag (
    concept_id INTEGER NOT NULL,
    tag VARCHAR NOT NULL,
    PRIMARY KEY (concept_id, tag),
    FOREIGN KEY(concept_id) REFERENCES concept (id) ON DELETE CASCADE
) WITHOUT ROWID;
CREATE INDEX ix_tag_tag ON tag (tag);
CREATE TABLE metric (
    run_id INTEGER NOT NULL,
    stage VARCHAR NOT NULL,
    step INTEGER NOT NULL,
    name VARCHAR NOT NULL,
    value FLOAT NOT NULL,
    PRIMARY KEY (run_id, stage, step, name),
    FOREIGN KEY(run_id) REFERENCES run (id) ON DELETE CASCADE
) WITHOUT ROWID;
CREATE TABLE run_image (
    run_id INTEGER NOT NULL,
    sha256 VARCHAR NOT NULL,
    PRIMARY KEY (run_id, sha256),
    FOREIGN KEY(run_id) REFERENCES run (id) ON DELETE CASCADE
) WITHOUT ROWID;
CREATE TABLE version (
    id INTEGER NOT NULL,
    concept_id INTEGER NOT NULL,
    number INTEGER NOT NULL,
    run_id INTEGER,
    created VARCHAR NOT NULL,
    PRIMARY KEY (id),
    UNIQUE (concept_id, number),
    FOREIGN KEY(concept_id) REFERENCES concept (id) ON DELETE CASCADE,
    FOREIGN KEY(run_id) REFERENCES run (id) ON DELETE SET NULL
);
CREATE INDEX ix_version_run_id ON version (run_id);
CREATE TABLE alias (
    concept_id INTEGER NOT NULL,
    alias VARCHAR NOT NULL,
    version_id INTEGER NOT NULL,
    PRIMARY KEY (concept_id, alias),
    FOREIGN KEY(concept_id) REFERENCES concept (id) ON DELETE CASCADE,
    FOREIGN KEY(version_id) REFERENCES version (id) ON DELETE CASCADE
) WITHOUT ROWID;
CREATE INDEX ix_alias_version_id ON alias (version_id);
CREATE TABLE artifact (
    id INTEGER NOT NULL,
    run_id INTEGER,
    version_id INTEGER,
    name VARCHAR NOT NULL,
    kind VARCHAR NOT NULL,
    sha256 VARCHAR NOT NULL,
    bytes INTEGER NOT NULL,
    created VARCHAR NOT NULL,
    PRIMARY KEY (id),
    FOREIGN KEY(run_id) REFERENCES run (id) ON DELETE CASCADE,
    FOREIGN KEY(version_id) REFERENCES version (id) ON DELETE CASCADE
);
CREATE INDEX ix_artifact_run_id ON artifact (run_id);
CREATE INDEX ix_artifact_sha256 ON artifact (sha256);
CREATE INDEX ix_artifact_version_id ON artifact (version_id);
CREATE TABLE evaluation (
    id INTEGER NOT NULL,
    version_id INTEGER NOT NULL,
    suite VARCHAR NOT NULL,
    config VARCHAR NOT NULL,
    scores VARCHAR NOT NULL,
    created VARCHAR NOT NULL,
    PRIMARY KEY (id),
    FOREIGN KEY(version_id) REFERENCES version (id) ON DELETE CASCADE
);
CREATE INDEX ix_evaluation_version_id ON evaluation (version_id);
CREATE TABLE generation_version (
    generation_id INTEGER NOT NULL,
    version_id INTEGER NOT NULL,
    PRIMARY KEY (generation_id, version_id),
    FOREIGN KEY(generation_id) REFERENCES generation (id) ON DELETE CASCADE,
    FOREIGN KEY(version_id) REFERENCES version (id) ON DELETE CASCADE
) WITHOUT ROWID;
CREATE INDEX ix_generation_version_version_id ON generation_version (version_id);

-- Rows of every table. Hashes are made up: the files are not part of a schema.

CREATE TABLE queue (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    concept_id INTEGER NOT NULL,
    position INTEGER NOT NULL,
    options VARCHAR NOT NULL,
    state VARCHAR NOT NULL,
    run_id INTEGER,
    error VARCHAR,
    added VARCHAR NOT NULL,
    FOREIGN KEY(concept_id) REFERENCES concept (id) ON DELETE CASCADE,
    FOREIGN KEY(run_id) REFERENCES run (id) ON DELETE SET NULL
);
CREATE INDEX ix_queue_concept_id ON queue (concept_id);
CREATE INDEX ix_queue_run_id ON queue (run_id);

INSERT INTO migration (name, position, needs, applied) VALUES
    ('initial', 1, '0.1.0', '2026-01-01T00:00:00.000Z'),
    ('queue', 2, '0.2.0', '2026-01-01T00:00:00.000Z');

INSERT INTO concept (id, name, category, notes, created, updated, search) VALUES
    (1, 'rex', 'dog', 'bites
the Postman', '2026-01-02T10:00:00.000Z', '2026-01-05T10:00:00.000Z', 'rex
dog
bites
the postman
old
pets
am strand, grösser'),
    (3, 'mia', 'teddy bear', '', '2026-01-03T10:00:00.000Z', '2026-01-03T10:00:00.000Z', 'mia
teddy bear

pets');

INSERT INTO tag (concept_id, tag) VALUES (1, 'old'), (1, 'pets'), (3, 'pets');

INSERT INTO image (id, concept_id, sha256, bytes, filename, format, width, height, caption, mask,
    mask_bytes, phash, added) VALUES
    (1, 1, '1111111111111111111111111111111111111111111111111111111111111111', 1001, '01.jpg',
        'JPEG', 640, 480, 'Am Strand, größer',
        'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa', 201,
        '00ff00ff00ff00ff', '2026-01-02T10:00:00.000Z'),
    (2, 1, '2222222222222222222222222222222222222222222222222222222222222222', 1002, '02.png',
        'PNG', 512, 512, NULL, NULL, NULL, 'ff00ff00ff00ff00', '2026-01-02T10:00:00.000Z'),
    (4, 3, '1111111111111111111111111111111111111111111111111111111111111111', 1001, 'bär.jpg',
        'JPEG', 640, 480, NULL, NULL, NULL, '00ff00ff00ff00ff', '2026-01-03T10:00:00.000Z');

INSERT INTO run (id, uid, concept_id, method, config, base, base_sha256, seed, packages, host,
    status, started, finished, error) VALUES
    (1, 'a1b2c3d4e5f6', 1, 'textual-inversion', '{"steps": 100, "rate": 1e-05}', 'miniature',
        'bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb', 7,
        '{"torch": "2.9"}', 'desk', 'done', '2026-01-04T10:00:00.000Z',
        '2026-01-04T11:00:00.000Z', NULL),
    (2, 'f6e5d4c3b2a1', 1, 'dreambooth', '{}', 'sd15',
        'bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb', 9223372036854775807,
        '{}', 'desk', 'failed', '2026-01-05T10:00:00.000Z', '2026-01-05T10:00:01.000Z',
        'NaN in step 3');

INSERT INTO run_image (run_id, sha256) VALUES
    (1, '1111111111111111111111111111111111111111111111111111111111111111'),
    (1, '3333333333333333333333333333333333333333333333333333333333333333');

INSERT INTO metric (run_id, stage, step, name, value) VALUES
    (1, 'one', 1, 'loss', 0.5), (1, 'one', 2, 'loss', 0.25), (1, 'two', 1, 'loss', 9e999);

INSERT INTO version (id, concept_id, number, run_id, created) VALUES
    (1, 1, 1, 1, '2026-01-04T11:00:00.000Z'), (2, 1, 2, NULL, '2026-01-04T12:00:00.000Z');

INSERT INTO alias (concept_id, alias, version_id) VALUES (1, 'best', 1), (1, 'newest', 2);

INSERT INTO artifact (id, run_id, version_id, name, kind, sha256, bytes, created) VALUES
    (1, NULL, 1, 'token.safetensors', 'adapter',
        'cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc', 3001,
        '2026-01-04T11:00:00.000Z'),
    (2, NULL, 2, 'lora.safetensors', 'lora',
        'dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd', 3002,
        '2026-01-04T12:00:00.000Z'),
    (3, 2, NULL, 'resume.safetensors', 'resume',
        'eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee', 3003,
        '2026-01-05T10:00:00.000Z');

INSERT INTO evaluation (id, version_id, suite, config, scores, created) VALUES
    (1, 1, 'live', '{"prompts": 2}', '{"clip_i": 0.75}', '2026-01-04T13:00:00.000Z');

INSERT INTO generation (id, output_sha256, prompt, seed, base, base_sha256, settings,
    created) VALUES
    (1, '4444444444444444444444444444444444444444444444444444444444444444', 'a photo of <rex>', 5,
        'miniature', 'bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb',
        '{"steps": 20}', '2026-01-04T14:00:00.000Z');

INSERT INTO generation_version (generation_id, version_id) VALUES (1, 1);

INSERT INTO event (id, at, concept_id, concept, action, detail) VALUES
    (1, '2026-01-02T10:00:00.000Z', 1, 'fido', 'create', '{"category": "dog"}'),
    (2, '2026-01-02T11:00:00.000Z', 1, 'rex', 'rename', '{"was": "fido"}'),
    (3, '2026-01-02T12:00:00.000Z', 2, 'gone', 'remove', '{"images": []}'),
    (4, '2026-01-03T10:00:00.000Z', 3, 'mia', 'create', '{"category": "teddy bear"}');

INSERT INTO queue (id, concept_id, position, options, state, run_id, error, added) VALUES
    (2, 1, 1, '{"base": "sd15", "method": "dreambooth"}', 'failed', 2, 'NaN in step 3',
        '2026-01-05T09:00:00.000Z'),
    (3, 3, 2, '{"base": "sd15", "method": "größer"}', 'waiting', NULL, NULL,
        '2026-01-05T09:00:00.000Z');
