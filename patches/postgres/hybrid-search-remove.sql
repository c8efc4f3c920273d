-- Takes away what hybrid-search.sql added, the extension too; the hybrid search goes back to Immich's bigrams.
-- License: AGPL-3.0-only.
--   docker exec -i immich_postgres psql -v ON_ERROR_STOP=1 --single-transaction -U postgres immich < hybrid-search-remove.sql

drop trigger if exists hybrid_search_written on ocr_search;
drop trigger if exists hybrid_search_deleted on ocr_search;
drop trigger if exists hybrid_search_truncated on ocr_search;
drop schema if exists hybrid_search cascade;
drop text search configuration if exists chinese;
drop extension if exists zhparser;
