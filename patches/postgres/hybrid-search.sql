-- Chinese words for Immich's hybrid search (patches/server/*/hybrid-search.patch). License: AGPL-3.0-only.
--
-- Run once, as a superuser, in Immich's database, after Immich has run its migrations:
--   docker exec -i immich_postgres psql -v ON_ERROR_STOP=1 --single-transaction -U postgres immich < hybrid-search.sql
-- Running it again is harmless and indexes all photos anew. Undone by hybrid-search-remove.sql.
--
-- All of it but the extension lives in a schema of its own, which Immich's migrations never look at. The server calls
-- hybrid_search.matches() where it exists and works without it where not.

create extension if not exists zhparser;
create schema if not exists hybrid_search;

-- The configuration `chinese`; one that is there already stays as it is. Particles, adverbs and the like are left out.
do $$
begin
  if not exists (select from pg_ts_config where cfgname = 'chinese' and pg_ts_config_is_visible(oid)) then
    create text search configuration chinese (parser = zhparser);
    alter text search configuration chinese add mapping for a, b, e, f, g, i, j, l, m, n, q, s, t, v, x, z with simple;
  end if;
end
$$;

create table if not exists hybrid_search.ocr_words (
  "assetId" uuid primary key references asset on update cascade on delete cascade,
  words tsvector not null
);
create index if not exists ocr_words_words on hybrid_search.ocr_words using gin (words);

-- The words of a text, those inside long words too (电话号码: 电话, 号码), and each Chinese character, written #福.
create or replace function hybrid_search.words(content text) returns tsvector
  language sql stable parallel safe
  set zhparser.multi_short = on
as $$
  select strip(to_tsvector('chinese', content)) || array_to_tsvector(array(
    select distinct '#' || character from regexp_split_to_table(content, '') as character where character ~ '[\u3400-\u9fff]'
  ))
$$;

-- Photos with all words of a query. One that is a single character matches it wherever it stands.
create or replace function hybrid_search.matches(query text) returns setof uuid
  language sql stable parallel safe rows 100
as $$
  select "assetId" from hybrid_search.ocr_words where words @@ case
    when btrim(query) ~ '^[\u3400-\u9fff]$' then ('#' || btrim(query))::tsquery
    else plainto_tsquery('chinese', query)
  end
$$;

-- Immich writes `ocr_search` last, in the statement or transaction that writes the lines to `asset_ocr`.
create or replace function hybrid_search.ocr_search_written() returns trigger
  language plpgsql
as $$
begin
  insert into hybrid_search.ocr_words ("assetId", words)
  select new."assetId", hybrid_search.words(coalesce(string_agg(text, E'\n'), ''))
  from asset_ocr where "assetId" = new."assetId" and "isVisible"
  on conflict ("assetId") do update set words = excluded.words;
  return null;
end
$$;

create or replace function hybrid_search.ocr_search_deleted() returns trigger
  language plpgsql
as $$
begin
  if tg_op = 'TRUNCATE' then
    truncate hybrid_search.ocr_words;
  else
    delete from hybrid_search.ocr_words where "assetId" = old."assetId";
  end if;
  return null;
end
$$;

create or replace trigger hybrid_search_written after insert or update on ocr_search
  for each row execute function hybrid_search.ocr_search_written();
create or replace trigger hybrid_search_deleted after delete on ocr_search
  for each row execute function hybrid_search.ocr_search_deleted();
create or replace trigger hybrid_search_truncated after truncate on ocr_search
  for each statement execute function hybrid_search.ocr_search_deleted();

-- The photos that are there already.
truncate hybrid_search.ocr_words;
insert into hybrid_search.ocr_words ("assetId", words)
select ocr_search."assetId", hybrid_search.words(coalesce(string_agg(asset_ocr.text, E'\n'), ''))
from ocr_search left join asset_ocr on asset_ocr."assetId" = ocr_search."assetId" and asset_ocr."isVisible"
group by ocr_search."assetId";
analyze hybrid_search.ocr_words;
