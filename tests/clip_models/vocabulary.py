"""What the tokenizers' vocabularies are made of: words, characters of several scripts, FLORES-200 codes."""

_WORDS = """
a an the of in on at by with and or no not is are my our your his her their this that these from to for near over
under photo picture image screenshot video portrait selfie drawing painting map document receipt menu sign text page
book dog dogs cat cats bird birds horse cow sheep fish bear elephant lion tiger rabbit butterfly animal animals puppy
kitten man men woman women boy girl child children baby people person family friends couple group crowd wedding
birthday party car cars bus train plane airplane boat ship bicycle bike motorcycle truck road street bridge station
airport beach sea ocean lake river waterfall mountain mountains forest tree trees flower flowers garden park field
desert island sky cloud clouds sun sunset sunrise moon night rain snow winter summer spring autumn storm rainbow fog
ice fire house home building castle church temple tower city village room kitchen bedroom office school window door
table chair food cake pizza bread cheese apple banana fruit soup coffee tea wine beer breakfast lunch dinner
restaurant red green blue yellow white black brown pink orange purple grey golden dark bright small big old new young
happy sad playing running sitting standing walking swimming eating sleeping reading smiling laughing holding riding
jumping christmas holiday vacation camping hiking skiing football basketball tennis guitar piano music dance concert
museum one two three four five hund katze strand berg haus und der die das chien chat plage maison et le la un une
perro gato playa casa el los
"""
WORDS = tuple(_WORDS.split())

CHINESE = "一只在的了我们你他她照片图狗猫鸟马人男女孩子家婴儿车船飞机路街桥海滩湖河山林树花草天空云日月夜雨雪冬夏春秋房屋城市食物蛋糕红绿蓝黄白黑大小老新生婚礼節國學貓鳥馬車門"  # noqa: E501
LETTERS = (
    "абвгдежзийклмнопрстуфхцчшщъыьэюя"
    "αβγδεζηθικλμνξοπρστυφχψως"
    "あいうえおかきくけこさしすせそたちつてとなにぬねのはひふへほまみむめもやゆよらりるれろわをん"
    "アイウエオカキクケコサシスセソタチツテトナニヌネノハヒフヘホマミムメモヤユヨラリルレロワヲン"
    "가나다라마바사아자차카타파하강개고양이"
    "ابتثجحخدذرزسشصضطظعغفقكلمنهوي"
    "äöüßéèêàâçñíóúåøæ"
)
ASCII = "".join(chr(code) for code in range(0x21, 0x7F))
CHARACTERS = tuple(dict.fromkeys(ASCII + LETTERS + CHINESE))

_FLORES_200 = """
ace_Arab ace_Latn acm_Arab acq_Arab aeb_Arab afr_Latn ajp_Arab aka_Latn amh_Ethi apc_Arab arb_Arab ars_Arab ary_Arab
arz_Arab asm_Beng ast_Latn awa_Deva ayr_Latn azb_Arab azj_Latn bak_Cyrl bam_Latn ban_Latn bel_Cyrl bem_Latn ben_Beng
bho_Deva bjn_Arab bjn_Latn bod_Tibt bos_Latn bug_Latn bul_Cyrl cat_Latn ceb_Latn ces_Latn cjk_Latn ckb_Arab crh_Latn
cym_Latn dan_Latn deu_Latn dik_Latn dyu_Latn dzo_Tibt ell_Grek eng_Latn epo_Latn est_Latn eus_Latn ewe_Latn fao_Latn
pes_Arab fij_Latn fin_Latn fon_Latn fra_Latn fur_Latn fuv_Latn gla_Latn gle_Latn glg_Latn grn_Latn guj_Gujr hat_Latn
hau_Latn heb_Hebr hin_Deva hne_Deva hrv_Latn hun_Latn hye_Armn ibo_Latn ilo_Latn ind_Latn isl_Latn ita_Latn jav_Latn
jpn_Jpan kab_Latn kac_Latn kam_Latn kan_Knda kas_Arab kas_Deva kat_Geor knc_Arab knc_Latn kaz_Cyrl kbp_Latn kea_Latn
khm_Khmr kik_Latn kin_Latn kir_Cyrl kmb_Latn kon_Latn kor_Hang kmr_Latn lao_Laoo lvs_Latn lij_Latn lim_Latn lin_Latn
lit_Latn lmo_Latn ltg_Latn ltz_Latn lua_Latn lug_Latn luo_Latn lus_Latn mag_Deva mai_Deva mal_Mlym mar_Deva min_Latn
mkd_Cyrl plt_Latn mlt_Latn mni_Beng khk_Cyrl mos_Latn mri_Latn zsm_Latn mya_Mymr nld_Latn nno_Latn nob_Latn npi_Deva
nso_Latn nus_Latn nya_Latn oci_Latn gaz_Latn ory_Orya pag_Latn pan_Guru pap_Latn pol_Latn por_Latn prs_Arab pbt_Arab
quy_Latn ron_Latn run_Latn rus_Cyrl sag_Latn san_Deva sat_Beng scn_Latn shn_Mymr sin_Sinh slk_Latn slv_Latn smo_Latn
sna_Latn snd_Arab som_Latn sot_Latn spa_Latn als_Latn srd_Latn srp_Cyrl ssw_Latn sun_Latn swe_Latn swh_Latn szl_Latn
tam_Taml tat_Cyrl tel_Telu tgk_Cyrl tgl_Latn tha_Thai tir_Ethi taq_Latn taq_Tfng tpi_Latn tsn_Latn tso_Latn tuk_Latn
tum_Latn tur_Latn twi_Latn tzm_Tfng uig_Arab ukr_Cyrl umb_Latn urd_Arab uzn_Latn vec_Latn vie_Latn war_Latn wol_Latn
xho_Latn ydd_Hebr yor_Latn yue_Hant zho_Hans zho_Hant zul_Latn
"""
FLORES_200 = tuple(_FLORES_200.split())
