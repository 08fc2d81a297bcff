"""The full-size members of the sweep: family, where it comes from, its name there and the image size.

Full-size means the channels and layers of the original. The image is smaller where the model takes a smaller one, which
changes nothing in the graph but lengths, and makes the sweep quicker.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Member:
    """One full-size architecture."""

    family: str
    source: str
    name: str
    size: int


def _members(source: str, size: int, text: str) -> tuple[Member, ...]:
    """Lines of "Family: name name@size ..."; `size` is that of the others."""
    found = []
    for line in text.strip().splitlines():
        family, _, names = line.strip().partition(": ")
        for name in names.split():
            name, _, own = name.partition("@")
            found.append(Member(family, source, name, int(own or size)))
    return tuple(found)


MEMBERS = (
    *_members(
        "pytorchcv",
        224,
        """
        AlexNet: alexnet.alexnet
        ZFNet: zfnet.zfnet
        NiN: nin_cifar.nin_cifar10@32
        BN-Inception: bninception.bninception
        PolyNet: polynet.polynet@331
        DiracNet V2: diracnetv2.diracnet18v2
        PyramidNet: pyramidnet_cifar.pyramidnet110_a48_cifar10@32
        ShuffleNet V1: shufflenet.shufflenet_g1_w1 shufflenet.shufflenet_g3_w1
        ShuffleNet V2: shufflenetv2.shufflenetv2_w1 shufflenetv2b.shufflenetv2b_w1
        MENet: menet.menet108_8x1_g3
        SqueezeNet: squeezenet.squeezenet_v1_0 squeezenet.squeezeresnet_v1_1
        SqueezeNext: squeezenext.sqnxt23_w1
        CBAM-ResNet: cbamresnet.cbam_resnet18
        BAM-ResNet: bamresnet.bam_resnet18
        Residual attention: resattnet.resattnet56
        AirNet: airnet.airnet50_1x64d_r2
        SCNet: scnet.scnet50
        CondenseNet: condensenet.condensenet74_c4_g4
        PeleeNet: peleenet.peleenet
        SparseNet: sparsenet.sparsenet121
        HarDNet: hardnet.hardnet39ds
        FishNet: fishnet.fishnet99
        OctResNet: octresnet.octresnet10_ad2
        i-RevNet: irevnet.irevnet301
        IBN: ibnresnet.ibn_resnet50 ibndensenet.ibn_densenet121
        WRN: wrn_cifar.wrn16_10_cifar10@32
        Shake-shake: shakeshakeresnet_cifar.shakeshakeresnet20_2x16d_cifar10@32
        ProxylessNAS: proxylessnas.proxylessnas_cpu
        IGCV3: igcv3.igcv3_w1
        ResNeSt (A): resnesta.resnestabc14
        Xception: xception.xception@299
        XDenseNet: xdensenet.xdensenet121_2
        DIA-ResNet: diaresnet.diaresnet10
        DARTS: darts.darts
        VoVNet: vovnet.vovnet27s
        """,
    ),
    *_members(
        "timm",
        128,
        """
        VGG: vgg16@224 vgg16_bn@224
        Inception V3/V4: inception_v3@160 inception_v4@160
        Inception-ResNet: inception_resnet_v2@160
        Xception: legacy_xception@160 xception41
        ResNet: resnet18 resnet50 resnet50d resnet50s
        ResNet V2: resnetv2_50 resnetv2_50d_gn resnetv2_50d_frn resnetv2_50d_evos resnetv2_50x1_bit
        Wide ResNet: wide_resnet50_2
        ResNeXt: resnext50_32x4d
        SE-ResNet: seresnet18 seresnext26ts legacy_seresnet50 senet154
        SKNet: skresnet18 skresnext50_32x4d
        ECA-Net: ecaresnet26t
        GC-ResNet: gcresnet33ts
        Res2Net: res2net50_14w_8s dla60_res2net
        ResNeSt: resnest14d
        Anti-aliased: resnetblur18 resnetaa50 densenetblur121d
        DenseNet: densenet121 rdnet_tiny
        DPN: dpn68 dpn48b
        CSPNet: cspresnet50 cspdarknet53 cs3darknet_s cs3sedarknet_l
        VoVNet: vovnet39a ese_vovnet19b_dw
        DLA: dla34 dla60
        HRNet: hrnet_w18_small
        DarkNet: darknet53
        MobileNet V1: mobilenetv1_100
        MobileNet V2: mobilenetv2_100
        MobileNet V3: mobilenetv3_large_100 mobilenetv3_small_100
        MobileNet V4: mobilenetv4_conv_small mobilenetv4_conv_blur_medium mobilenetv4_hybrid_medium
        MobileNet EdgeTPU: mobilenet_edgetpu_v2_s
        MnasNet: mnasnet_100 semnasnet_100 spnasnet_100
        FBNet: fbnetc_100 fbnetv3_b
        MixNet: mixnet_s mixnet_m
        EfficientNet: efficientnet_b0 tf_efficientnet_b0 efficientnet_lite0 efficientnet_es efficientnet_b0_gn
        EfficientNet V2: efficientnetv2_rw_t tf_efficientnetv2_b0 gc_efficientnetv2_rw_t
        GhostNet: ghostnet_100 ghostnetv2_100 ghostnetv3_100 repghostnet_100
        RegNet: regnetx_004 regnety_004 regnetz_005 regnety_040_sgn
        RepVGG: repvgg_a0 repvgg_b1g4 repvgg_d2se
        MobileOne: mobileone_s0 mobileone_s4
        ReXNet: rexnet_100
        SelecSLS: selecsls42b
        GENet: gernet_s gernet_m
        NFNet: dm_nfnet_f0 nfnet_l0 eca_nfnet_l0 nf_regnet_b0 nf_resnet50
        ConvNeXt: convnext_atto convnext_tiny convnext_zepto_rms convnextv2_atto inception_next_atto
        StarNet: starnet_s1
        EdgeNeXt: edgenext_xx_small
        FastViT: fastvit_t8
        PoolFormer: poolformer_s12 poolformerv2_s12
        TResNet: tresnet_m
        HGNet: hgnetv2_b0
        LCNet: lcnet_100
        TinyNet: tinynet_e
        FasterNet: fasternet_t0
        NASNet: nasnetalarge@160 pnasnet5large@160
        RepViT: repvit_m1
        MambaOut: mambaout_femto
        FocalNet: focalnet_tiny_srf
        HardCoRe-NAS: hardcorenas_a
        EfficientFormer: efficientformer_l1@224
        CoAtNet: coatnet_pico_rw_224@224
        BoTNet: botnet26t_256@256
        LeViT: levit_conv_128s@224
        SwiftFormer: swiftformer_xs
        """,
    ),
)
